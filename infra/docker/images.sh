#!/usr/bin/env bash
# Builds the images and pushes them to a registry. A tag that the registry has already is left as it is: pods pull an
# image once (IfNotPresent), so a tag must never come to mean something else.
# usage: REGISTRY=host[:port][/path] TAG=tag infra/docker/images.sh [step|serving|zenml|mlflow|mariadb|postgres]...
set -euo pipefail
cd "$(dirname "$0")/../.."

REGISTRY=${REGISTRY:-127.0.0.1:5000}
TAG=${TAG:-$(infra/scripts/tag)}

folder() { # the folder of an image's Dockerfile
    case $1 in
        step | serving | mariadb | postgres) echo "$1" ;;
        zenml | mlflow) echo "$1-server" ;;
        *) echo "error: no image is called $1; there are step, serving, zenml, mlflow, mariadb, postgres" >&2; exit 2 ;;
    esac
}

build() { # build TAG FOLDER; the log is shown when it fails
    local log
    log=$(mktemp)
    # The host's network: a package index that the machine reaches is then reached by the build as well.
    docker build --network host --tag "$1" --file "infra/docker/$2/Dockerfile" . >"$log" 2>&1 || { tail -40 "$log" >&2; exit 1; }
    rm "$log"
}

there() { # whether the registry has IMAGE; a registry that does not answer is no registry without it
    local said
    said=$(docker manifest inspect --insecure "$1" 2>&1 >/dev/null) && return 0
    case $said in
        *'no such manifest'* | *'manifest unknown'* | *'name unknown'*) return 1 ;;
        *) echo "error: the registry was asked for $1: $said" >&2; exit 1 ;;
    esac
}

build medflow-base base
printf '%-52s %8s %8s %8s\n' image build/s push/s MB
[ $# -gt 0 ] || set -- step serving zenml mlflow mariadb postgres
for name in "$@"; do
    place=$(folder "$name")
    image=$REGISTRY/medflow-$name:$TAG
    if there "$image"; then
        printf '%-52s %8s\n' "$image" 'is there'
        continue
    fi
    SECONDS=0
    build "$image" "$place"
    built=$SECONDS
    SECONDS=0
    docker push --quiet "$image" >/dev/null
    printf '%-52s %8d %8d %8d\n' "$image" "$built" "$SECONDS" \
        "$(($(docker image inspect --format '{{.Size}}' "$image") / 1000000))"
done
echo "TAG=$TAG"
