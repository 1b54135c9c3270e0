# Installs a version from a folder of wheels: $1 target, $2 wheels, $3 Python, $4 the id of its libraries. If the
# running version has the same libraries, its files are hard-linked. The version counts as complete once its agent has
# started (inputs.sh). Until then the next run installs it again.
set -eu
export LC_ALL=C.UTF-8 PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
umask 022   # root's own may keep others out, and the agent is another user
# An interrupted run may still be installing.
exec 9>/opt/edgellm/.lock
flock --timeout 600 9
[ ! -e "$1/.complete" ] || [ ! -x "$1/bin/python" ] || { rm -rf "$2"; exit 0; }
# Nothing may run from what is replaced now, such as an agent that fails and is started again and again.
[ "$(readlink /opt/edgellm/current)" != "versions/$(basename "$1")" ] || systemctl stop edgellm-agent.service
trap 'rm -rf "$1"' EXIT
rm -rf "$1"
# Remove wheels of a version whose push was abandoned.
find "$(dirname "$2")" -mindepth 1 -maxdepth 1 ! -path "$2" -exec rm -rf {} +
"$3" -m venv --without-pip "$1"
export TMPDIR="$1/tmp"   # /tmp may be small
mkdir "$TMPDIR"
wanted=
if [ -e /opt/edgellm/current/.complete ] && [ "$(cat /opt/edgellm/current/.libraries 2>/dev/null)" = "$4" ]; then
  here=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp -al "/opt/edgellm/current/${here#"$1/"}/." "$here"
  rm -rf "$here"/edgellm "$here"/edgellm-*.dist-info
  wanted=^edgellm==
fi
grep "$wanted" "$2/requirements.txt" >"$1/requirements.txt"
PYTHONPATH=$(echo "$2"/pip-*.whl) "$1/bin/python" -m pip install --quiet --no-index --no-cache-dir --no-compile \
  --no-deps --find-links "$2" --require-hashes --requirement "$1/requirements.txt"
"$1/bin/python" -c 'import edgellm.agent.serve, edgellm.agent.load'
rm -rf "$TMPDIR"
chmod -R u+rwX,go+rX,go-w "$1"
echo "$4" >"$1/.libraries"
sync
trap - EXIT
rm -rf "$2"
