#!/bin/sh
# Makes the data folder, the database `zenml` and its user on the first start, then serves. Needs DB_PASSWORD, /data
# and a writable /tmp. No root account can log in over the network, and the socket lies in this pod's /tmp.
set -eu
data=/data/mariadb
[ -d "$data/mysql" ] || mariadb-install-db --no-defaults --datadir="$data" --skip-test-db --auth-root-authentication-method=socket >/dev/null
umask 077
cat >/tmp/init.sql <<Q
CREATE DATABASE IF NOT EXISTS zenml;
CREATE USER IF NOT EXISTS 'zenml'@'%';
ALTER USER 'zenml'@'%' IDENTIFIED BY '$DB_PASSWORD';
GRANT ALL ON zenml.* TO 'zenml'@'%';
Q
exec mariadbd --no-defaults --datadir="$data" --bind-address=0.0.0.0 --skip-name-resolve --init-file=/tmp/init.sql \
    --socket=/tmp/mariadb.sock --pid-file=/tmp/mariadb.pid --max-connections=300
