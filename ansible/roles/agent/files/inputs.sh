# Lists what the agent runs from: 'record' saves the list as the unit starts, 'changed' prints what differs since then.
# The next deploy can so finish one that was interrupted between a change and the restart. 'started' marks the version as
# complete, because its agent has started; it runs as root.
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
  started)
    # The list is the agent's own file, so root takes nothing from it but the name of a version.
    version=$(head -c 200 "$here" | head -n 1)
    case $version in versions/.* | versions/*[!A-Za-z0-9._+-]*) exit 1 ;; versions/?*) ;; *) exit 1 ;; esac
    marker=/opt/edgellm/$version/.complete
    [ -e "$marker" ] || { : >"$marker" && sync "$marker"; }
    ;;
esac
