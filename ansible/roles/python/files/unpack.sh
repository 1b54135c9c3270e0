# Unpacks a CPython into $1/$2 from the archive $3, whose SHA-256 is $4. The folder gets its name once it is whole and
# on the disk, so that an interrupted run starts over.
set -eu
umask 022
mkdir -p "$1"
[ "$(sha256sum <"$3" | cut -c -64)" = "$4" ] || {
  rm -f "$3"
  echo "$3 is corrupt right after it was pushed. The card or the memory has errors." >&2
  exit 1
}
rm -rf "$1/$2" "$1/$2.new"
mkdir "$1/$2.new"
tar -xzf "$3" --no-same-owner --strip-components=1 -C "$1/$2.new"
"$1/$2.new/bin/python3" -c 'import ctypes, json, sqlite3, ssl, venv, zipfile'
sync -f "$1/$2.new"
mv "$1/$2.new" "$1/$2"
rm -rf "$(dirname "$3")"
sync -f "$1"
