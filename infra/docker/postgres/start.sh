#!/bin/sh
# Makes the data folder, the database `mlflow` and its owner on the first start, then serves. Needs DB_PASSWORD, /data
# and a writable /tmp. Everything logs in by password; the socket lies in this pod's /tmp.
set -eu
data=/data/postgres
if [ ! -s "$data/PG_VERSION" ]; then
    umask 077
    printf '%s' "$DB_PASSWORD" >/tmp/password
    initdb --pgdata="$data.part" --username=mlflow --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 >/dev/null
    rm /tmp/password
    echo 'CREATE DATABASE mlflow;' | postgres --single -D "$data.part" postgres >/dev/null
    echo "host all all all scram-sha-256" >>"$data.part/pg_hba.conf"
    mv "$data.part" "$data"
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
