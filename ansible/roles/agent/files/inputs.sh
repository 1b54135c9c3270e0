# What the agent runs from: 'record' notes it as the unit starts, 'changed' says what is different since then.
# So that a deploy that was interrupted between a change and the restart is finished by the next one.
here=/run/edgellm-agent/inputs
inputs() {
  readlink /opt/edgellm/current /var/lib/edgellm/model
  sha256sum /etc/systemd/system/edgellm-agent.service
  # A file that was replaced has another inode; one that came in addition is no reason to restart.
  stat -L -c '%n %i %s' /var/lib/edgellm/model/*
}
case $1 in
  record) inputs >"$here" ;;
  changed)
    [ -e "$here" ] || { echo "it does not run"; exit 0; }
    inputs | grep -vxF -f - "$here"
    true
    ;;
esac
