# Asks apt whether it can install what a board lacks, and prints the packages' names: edgellm_packages=…
# $1 lists what is missing (python3); with "check" as $2 the script leaves no trace.
LC_ALL=C DEBIAN_FRONTEND=noninteractive
export LC_ALL DEBIAN_FRONTEND
lists=/var/lib/apt/lists
if [ "$2" = check ]; then
  lists=$(mktemp -d)
  trap 'rm -rf "$lists"' EXIT
fi
set -- "$1" -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 \
  -o Dir::State::lists="$lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
wanted=$1
shift
timeout 300 apt-get "$@" -o APT::Update::Error-Mode=any update >/dev/null 2>&1 || { echo edgellm_mirror=no; exit 0; }
# Where a package isn't known, apt takes its name for a regular expression: python3.13 finds postgresql-plpython3-13.
# So only the paragraph under the very name counts.
candidate() {
  apt-cache "$@" 2>/dev/null | awk -v heading="$name:" '
    /^[^ ]/ { mine = $0 == heading }
    mine && /Candidate:/ { sub(/^[0-9]*:/, "", $2); print $2 }'
}
packages=
for want in $wanted; do
  found=
  names=$want
  [ "$want" = python3 ] && names="python3 python3.14 python3.13 python3.12 python3.11"
  for name in $names; do
    version=$(candidate "$@" policy "$name")
    case "$want $version" in
      "python3 3."1[1-9].* | "python3 3."[2-9][0-9].*) found=$name && break ;;
      "python3 "* | "$want " | "$want (none)") ;;
      *) found=$name && break ;;
    esac
  done
  [ -n "$found" ] || exit 0
  packages="$packages $found"
  [ "$want" = python3 ] || continue
  echo "edgellm_python=/usr/bin/$found"
  echo "edgellm_python_minor=$(echo "$version" | cut -d. -f1,2)"
done
# Let apt decide, because it knows dependencies, and pinned and held packages.
apt-get "$@" install --simulate --no-install-recommends $packages >/dev/null 2>&1 && echo "edgellm_packages=${packages# }"
true
