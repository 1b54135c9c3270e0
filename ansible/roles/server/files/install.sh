# Installs a version of the server from a folder of wheels: $1 its id, $2 wheels, $3 Python. Runs as root.
set -eu
export LC_ALL=C.UTF-8 PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
umask 022   # root's own may keep others out, and the server is another user
root=/opt/edgellm/server
mkdir -p "$root/versions"
exec 9>"$root/.lock"   # an interrupted run may still be installing
flock --timeout 600 9
new=$root/versions/$1
[ ! -e "$new/.complete" ] || [ ! -x "$new/bin/python" ] || { rm -rf "$2"; exit 0; }
trap 'rm -rf "$new"' EXIT
rm -rf "$new"
# Remove wheels of a version whose push was abandoned.
find "$(dirname "$2")" -mindepth 1 -maxdepth 1 ! -path "$2" -exec rm -rf {} +
"$3" -m venv --without-pip "$new"
export TMPDIR="$new/tmp"   # /tmp may be small
mkdir "$TMPDIR"
PYTHONPATH=$(echo "$2"/pip-*.whl) "$new/bin/python" -m pip install --quiet --no-index --no-cache-dir --no-compile \
  --no-deps --find-links "$2" --require-hashes --requirement "$2/requirements.txt"
# That compiles what the server needs, because it may not write there later, and shows that the wheels work here.
"$new/bin/python" -c 'import edgellm.cli, edgellm.server.app, uvicorn'
rm -rf "$TMPDIR"
chmod -R u+rwX,go+rX,go-w "$new"
sync
touch "$new/.complete"
sync "$new/.complete"
trap - EXIT
rm -rf "$2"
