# Removes versions and models but the ones in use and the ones before, $1 and $2; says what.
prune() {   # FOLDER LINK BEFORE
  for path in "$1"/*/; do
    name=$(basename "$path")
    case $name in "$(basename "$(readlink "$2")")" | "$3" | '*') continue ;; esac
    rm -rf "$path" && echo "$path"
  done
}
prune /opt/edgellm/versions /opt/edgellm/current "$1"
prune /var/lib/edgellm/models /var/lib/edgellm/model "$2"
