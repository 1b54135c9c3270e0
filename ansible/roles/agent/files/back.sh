# Switches the agent back to version $2 and model $3 with the unit that comes as a tar stream, and removes version $1, which
# failed. Runs as root.
set -eu
umask 022
new=$(mktemp -d /opt/edgellm/.new.XXXXXX)
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
chmod 0644 "$new/edgellm-agent.service"
cp "$new/edgellm-agent.service" /etc/systemd/system/edgellm-agent.service.new
sync /etc/systemd/system/edgellm-agent.service.new
mv -f /etc/systemd/system/edgellm-agent.service.new /etc/systemd/system/edgellm-agent.service
ln -s "versions/$2" "$new/current"
mv -fT "$new/current" /opt/edgellm/current
ln -s "models/$3" "$new/model"
mv -fT "$new/model" /var/lib/edgellm/model
systemctl daemon-reload
systemctl enable --quiet edgellm-agent.service
systemctl restart edgellm-agent.service
[ "$1" = "$2" ] || rm -rf "/opt/edgellm/versions/$1"
