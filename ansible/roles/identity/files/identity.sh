# Puts the certificate and key that come as a tar stream into place, each file as a whole, readable for the agent alone.
# The agent notices renewed files by itself. Runs as root.
set -eu
umask 077
new=$(mktemp -d /etc/edgellm/tls/.new.XXXXXX)
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
cd "$new"
chown root:edgellm ca.pem cert.pem
chmod 0640 ca.pem cert.pem
chown edgellm:edgellm key.pem
chmod 0600 key.pem
sync ca.pem key.pem cert.pem
mv -f ca.pem key.pem cert.pem ..
