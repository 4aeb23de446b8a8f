#!/bin/sh
# Makes a virtual environment with gRPC in it, and stubs from proto/defs: setup.sh DIRECTORY
set -eu
here=$(cd "$(dirname "$0")" && pwd)
defs=$here/../../proto/defs
out=${1:?usage: setup.sh DIRECTORY}
[ -x "$out/bin/python" ] || python3 -m venv "$out"
# What is there already is not asked for again.
if ! cmp -s "$here/requirements.txt" "$out/requirements.txt"; then
    "$out/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$out/requirements.txt"
fi
mkdir -p "$out/stubs"
out=$(cd "$out" && pwd)
cd "$defs"
"$out/bin/python" -m grpc_tools.protoc -I . --python_out="$out/stubs" --grpc_python_out="$out/stubs" \
    $(find containerd/types containerd/v1 containerd/services containerd/events -name "*.proto" ! -path "*introspection*")
