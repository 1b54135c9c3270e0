# Installs the packages $1 with apt. Runs as root.
LC_ALL=C DEBIAN_FRONTEND=noninteractive
export LC_ALL DEBIAN_FRONTEND
umask 022   # what packages' scripts make is for every user
apt-get -qq -y -o DPkg::Lock::Timeout=120 install --no-install-recommends $1
