# Compares the files in folder $1 with the SHA-256 sums on standard input; last comes what its disk has free.
if cd "$1" 2>/dev/null; then
  LC_ALL=C sha256sum --check - 2>/dev/null
else
  cat >/dev/null   # whoever writes the sums must not find the pipe closed
fi
{ df -Pk "$1" 2>/dev/null || df -Pk /var/lib; } | tail -n 1
