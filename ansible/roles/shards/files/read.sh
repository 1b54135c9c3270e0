# Compares the files in folder $1 with the SHA-256 sums on standard input. The last line is df's, for free disk space.
if cd "$1" 2>/dev/null; then
  LC_ALL=C sha256sum --check - 2>/dev/null
else
  cat >/dev/null   # otherwise the writer of the sums would find the pipe closed
fi
{ df -Pk "$1" 2>/dev/null || df -Pk /var/lib; } | tail -n 1
