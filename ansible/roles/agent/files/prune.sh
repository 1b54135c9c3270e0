# Removes all versions and models but those in use and the previous ones, $1 and $2; prints what it removes.
prune() {   # FOLDER LINK BEFORE
  for path in "$1"/*/; do
    name=$(basename "$path")
    case $name in "$(basename "$(readlink "$2")")" | "$3" | '*') continue ;; esac
    rm -rf "$path" && echo "$path"
  done
}
prune /opt/edgellm/versions /opt/edgellm/current "$1"
prune /var/lib/edgellm/models /var/lib/edgellm/model "$2"
# Python that deploy brought goes with the last version that runs on it.
for python in /opt/edgellm/python-*/; do
  if [ -d "$python" ] && ! grep -qs "^home = ${python}bin" /opt/edgellm/versions/*/pyvenv.cfg /opt/edgellm/server/versions/*/pyvenv.cfg; then
    rm -rf "$python" && echo "$python"
  fi
done
