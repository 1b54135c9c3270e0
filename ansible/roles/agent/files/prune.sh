# Removes all versions and models but those in use, the previous ones, $1 and $2, and the further models $3…; prints what
# it removes.
prune() {   # FOLDER LINK KEEP…
  folder=$1 link=$2
  shift 2
  for path in "$folder"/*/; do
    name=$(basename "$path")
    case " $(basename "$(readlink "$link")") $* * " in *" $name "*) continue ;; esac
    rm -rf "$path" && echo "$path"
  done
}
prune /opt/edgellm/versions /opt/edgellm/current "$1"
shift
prune /var/lib/edgellm/models /var/lib/edgellm/model "$@"
# Python that deploy brought goes with the last version that runs on it.
for python in /opt/edgellm/python-*/; do
  if [ -d "$python" ] && ! grep -qs "^home = ${python}bin" /opt/edgellm/versions/*/pyvenv.cfg /opt/edgellm/server/versions/*/pyvenv.cfg; then
    rm -rf "$python" && echo "$python"
  fi
done
