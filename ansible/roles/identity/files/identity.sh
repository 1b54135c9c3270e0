# Puts the certificate and key that come as a tar stream into place, and what the CA has revoked: each file as a whole,
# readable for the agent alone.
# The agent notices renewed files by itself. Runs as root.
set -eu
umask 077
new=$(mktemp -d /etc/edgellm/tls/.new.XXXXXX)
trap 'rm -rf "$new"' EXIT
tar -xf - -C "$new"
cd "$new"
chown root:edgellm ca.pem crl.pem cert.pem revoked.json
chmod 0640 ca.pem crl.pem cert.pem revoked.json
chown edgellm:edgellm key.pem
chmod 0600 key.pem
sync ca.pem crl.pem key.pem cert.pem revoked.json
mv -f ca.pem crl.pem key.pem cert.pem revoked.json ..
