# Compares the files in folder $1 with the SHA-256 sums on standard input; last comes what its disk has free.
cd "$1" 2>/dev/null && LC_ALL=C sha256sum --check - 2>/dev/null
{ df -Pk "$1" 2>/dev/null || df -Pk /var/lib; } | tail -n 1
