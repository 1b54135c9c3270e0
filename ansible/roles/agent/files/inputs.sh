# Lists what the agent runs from: 'record' saves the list as the unit starts, 'changed' prints what differs since then.
# The next deploy can so finish one that was interrupted between a change and the restart.
here=/run/edgellm-agent/inputs
inputs() {
  readlink /opt/edgellm/current /var/lib/edgellm/model
  sha256sum /etc/systemd/system/edgellm-agent.service
  # A replaced file has another inode. An additional file is no reason to restart.
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
