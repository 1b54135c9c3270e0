# Switches the agent to version $1 and model $2, with the unit and the script that come as a tar stream. Restarts it only
# if what it runs from has changed since it started. Runs as root.
set -eu
umask 022
new=$(mktemp -d /opt/edgellm/.new.XXXXXX)
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
put() {   # NAME PATH
  cmp -s "$new/$1" "$2" && return
  chmod 0644 "$new/$1"
  cp "$new/$1" "$2.new"
  sync "$2.new"
  mv -f "$2.new" "$2"
}
# The new link is made beside the old one and renamed, so that there is always one.
link() {   # TARGET PATH
  [ "$(readlink "$2")" = "$1" ] && return
  ln -s "$1" "$new/link"
  mv -fT "$new/link" "$2"
}
put inputs.sh /opt/edgellm/inputs.sh
put edgellm-agent.service /etc/systemd/system/edgellm-agent.service
link "versions/$1" /opt/edgellm/current
link "models/$2" /var/lib/edgellm/model
if [ -n "$(sh /opt/edgellm/inputs.sh changed)" ]; then
  systemctl daemon-reload
  systemctl enable --quiet edgellm-agent.service
  systemctl restart edgellm-agent.service
else
  systemctl enable --quiet --now edgellm-agent.service
fi
