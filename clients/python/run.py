"""Pulls an image, runs a container from it, executes a second process in it and removes everything again.

    run.py SOCKET IMAGE ID

Needs the stubs that setup.sh makes from proto/defs; nothing here knows which daemon answers.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading

import grpc
from google.protobuf.any_pb2 import Any

from containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from containerd.services.content.v1 import content_pb2, content_pb2_grpc
from containerd.services.events.v1 import events_pb2, events_pb2_grpc
from containerd.services.images.v1 import images_pb2, images_pb2_grpc
from containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc
from containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from containerd.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from containerd.services.transfer.v1 import transfer_pb2, transfer_pb2_grpc
from containerd.types import platform_pb2
from containerd.types.transfer import imagestore_pb2, progress_pb2, registry_pb2

import oci

NAMESPACE, SNAPSHOTTER, RUNTIME = "example", "overlayfs", "io.containerd.runc.v2"
PLATFORM = platform_pb2.Platform(os="linux", architecture=oci.architecture())
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/"

# The first process runs until it is told to end; the second waits until the first is ready for that.
FIRST = "trap 'echo stopped; exit 7' TERM; echo running; touch /tmp/ready; while :; do sleep 0.05; done"
SECOND = "until [ -e /tmp/ready ]; do sleep 0.02; done; echo executed; exit 3"
SIGTERM, SIGKILL = 15, 9


def packed(message):
    """A message in an Any, under its bare name as containerd's own clients send it."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def document(kind, value):
    """A part of a runtime specification in an Any: JSON under a name of its own."""
    return Any(type_url=SPEC + kind, value=json.dumps(value).encode())


class Client:
    """The services on one connection. Each call carries the namespace and the lease, and has a deadline."""

    def __init__(self, socket):
        # A socket has no host to name; its path, which gRPC would send in that place, is no name that HTTP/2 allows.
        options = [("grpc.default_authority", "localhost")]
        self.channel = grpc.insecure_channel(f"unix://{os.path.abspath(socket)}", options)
        self.metadata = [("containerd-namespace", NAMESPACE)]
        self.containers = containers_pb2_grpc.ContainersStub(self.channel)
        self.content = content_pb2_grpc.ContentStub(self.channel)
        self.events = events_pb2_grpc.EventsStub(self.channel)
        self.images = images_pb2_grpc.ImagesStub(self.channel)
        self.leases = leases_pb2_grpc.LeasesStub(self.channel)
        self.snapshots = snapshots_pb2_grpc.SnapshotsStub(self.channel)
        self.streaming = streaming_pb2_grpc.StreamingStub(self.channel)
        self.tasks = tasks_pb2_grpc.TasksStub(self.channel)
        self.transfer = transfer_pb2_grpc.TransferStub(self.channel)

    def call(self, method, request, timeout=60):
        return method(request, metadata=self.metadata, timeout=timeout)

    def undo(self, method, request):
        """A step of the cleanup: what is gone already is as wanted."""
        try:
            self.call(method, request, timeout=10)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise

    @contextlib.contextmanager
    def lease(self):
        """What is made inside is not collected before a record refers to it."""
        hour = {"containerd.io/gc.expire": oci.in_an_hour()}
        lease = self.call(self.leases.Create, leases_pb2.CreateRequest(id=f"example-{os.getpid()}", labels=hour)).lease
        plain, self.metadata = self.metadata, self.metadata + [("containerd-lease", lease.id)]
        try:
            yield
        finally:
            self.metadata = plain
            self.undo(self.leases.Delete, leases_pb2.DeleteRequest(id=lease.id, sync=True))

    def pull(self, reference):
        """Fetches and unpacks an image in the daemon, printing what it tells of its progress."""
        stream, done = f"progress-{os.getpid()}", threading.Event()

        def ours():
            yield packed(streaming_pb2.StreamInit(id=stream))
            done.wait()

        reports = self.call(self.streaming.Stream, ours())
        next(reports)  # the daemon knows the stream from here on
        printer = threading.Thread(target=print_progress, args=(reports,), daemon=True)
        printer.start()
        unpack = imagestore_pb2.UnpackConfiguration(platform=PLATFORM, snapshotter=SNAPSHOTTER)
        image = imagestore_pb2.ImageStore(name=reference, platforms=[PLATFORM], unpacks=[unpack])
        try:
            self.call(self.transfer.Transfer, transfer_pb2.TransferRequest(
                source=packed(registry_pb2.OCIRegistry(reference=reference)),
                destination=packed(image),
                options=transfer_pb2.TransferOptions(progress_stream=stream),
            ))
        finally:
            done.set()
            printer.join(5)

    def blob(self, digest):
        """A JSON document of the content store."""
        chunks = self.call(self.content.Read, content_pb2.ReadContentRequest(digest=digest))
        return json.loads(b"".join(chunk.data for chunk in chunks))

    def image_config(self, reference):
        """The image's configuration for our platform, by way of its index, if it has one, and manifest."""
        target = self.call(self.images.Get, images_pb2.GetImageRequest(name=reference)).image.target
        manifest = self.blob(target.digest)
        if "manifests" in manifest:
            ours = [m for m in manifest["manifests"] if oci.fits(m.get("platform", {}))]
            manifest = self.blob(ours[0]["digest"])
        return self.blob(manifest["config"]["digest"])

    def watch(self, id):
        """Prints the container's events; the thread ends when its task has been deleted."""
        stream = self.call(self.events.Subscribe, events_pb2.SubscribeRequest(filters=['topic~="^/tasks/"']), 120)
        thread = threading.Thread(target=print_events, args=(stream, id), daemon=True)
        thread.start()
        return thread

    def run(self, id, mounts):
        """Starts the container's task and a second process in it, waits for both; their exit codes."""
        with stdio(id) as paths, contextlib.ExitStack() as undo:
            self.call(self.tasks.Create, tasks_pb2.CreateTaskRequest(container_id=id, rootfs=mounts, **paths))
            undo.callback(self.undo, self.tasks.Delete, tasks_pb2.DeleteTaskRequest(container_id=id))
            killing = tasks_pb2.KillRequest(container_id=id, signal=SIGKILL)
            kill = undo.enter_context(contextlib.ExitStack())  # only when something below fails
            kill.callback(self.undo, self.tasks.Kill, killing)
            waiting = self.tasks.Wait.future(tasks_pb2.WaitRequest(container_id=id), metadata=self.metadata, timeout=60)
            self.call(self.tasks.Start, tasks_pb2.StartRequest(container_id=id))
            second = self.execute(id)
            self.call(self.tasks.Kill, tasks_pb2.KillRequest(container_id=id, signal=SIGTERM))
            first = waiting.result().exit_status
            kill.pop_all()
            return first, second

    def execute(self, id):
        """Runs a second process in the container; its exit code."""
        with stdio("second") as paths, contextlib.ExitStack() as undo:
            process = document("Process", oci.process({}, SECOND))
            self.call(self.tasks.Exec, tasks_pb2.ExecProcessRequest(
                container_id=id, exec_id="second", spec=process, **paths))
            remove = tasks_pb2.DeleteProcessRequest(container_id=id, exec_id="second")
            undo.callback(self.undo, self.tasks.DeleteProcess, remove)
            self.call(self.tasks.Start, tasks_pb2.StartRequest(container_id=id, exec_id="second"))
            return self.call(self.tasks.Wait, tasks_pb2.WaitRequest(container_id=id, exec_id="second")).exit_status


@contextlib.contextmanager
def stdio(name):
    """Named pipes for a process's output, copied to ours for as long as it writes."""
    with tempfile.TemporaryDirectory(prefix="example-") as directory:
        paths = {stream: os.path.join(directory, f"{name}-{stream}") for stream in ("stdout", "stderr")}
        for path in paths.values():
            os.mkfifo(path)
        copiers = [threading.Thread(target=copy, args=(path,), daemon=True) for path in paths.values()]
        for copier in copiers:
            copier.start()
        yield paths
        for copier in copiers:
            copier.join(5)


def say(line):
    """Prints in one write: several threads do, and their lines stay whole."""
    print(f"{line}\n", end="", flush=True)


def copy(path):
    with open(path, encoding="utf-8", errors="replace") as pipe:
        for line in pipe:
            say(line.removesuffix("\n"))


def print_progress(reports):
    with contextlib.suppress(grpc.RpcError):
        for report in reports:
            p = progress_pb2.Progress.FromString(report.value)
            say(f"pull {p.event} {p.name} {p.progress}/{p.total}")


def print_events(stream, id):
    from containerd.events import task_pb2

    for envelope in stream:
        message = getattr(task_pb2, envelope.event.type_url.rsplit(".", 1)[-1]).FromString(envelope.event.value)
        if message.container_id != id:
            continue
        say(f"event {envelope.topic}")
        if envelope.topic == "/tasks/delete":
            stream.cancel()
            return


def example(socket, reference, id):
    client = Client(socket)
    with client.channel, client.lease(), contextlib.ExitStack() as undo:
        events = client.watch(id)
        client.pull(reference)
        undo.callback(client.undo, client.images.Delete, images_pb2.DeleteImageRequest(name=reference))
        config = client.image_config(reference)
        prepare = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=SNAPSHOTTER, key=id, parent=oci.chain_id(config["rootfs"]["diff_ids"]))
        mounts = client.call(client.snapshots.Prepare, prepare).mounts
        remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=id)
        undo.callback(client.undo, client.snapshots.Remove, remove)
        container = containers_pb2.Container(
            id=id, image=reference, snapshotter=SNAPSHOTTER, snapshot_key=id,
            runtime=containers_pb2.Container.Runtime(name=RUNTIME),
            spec=document("Spec", oci.spec(NAMESPACE, id, config.get("config", {}), FIRST)))
        client.call(client.containers.Create, containers_pb2.CreateContainerRequest(container=container))
        undo.callback(client.undo, client.containers.Delete, containers_pb2.DeleteContainerRequest(id=id))
        first, second = client.run(id, mounts)
        say(f"exit exec {second}\nexit container {first}")
        events.join(10)
        if (first, second) != (7, 3):
            raise RuntimeError(f"exit codes {first} and {second}, expected 7 and 3")
        if events.is_alive():
            raise RuntimeError("no event told of the task's end")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: run.py SOCKET IMAGE ID")
    try:
        example(*sys.argv[1:])
    except grpc.RpcError as error:
        sys.exit(f"example: {error.code().name}: {error.details()}")
    except (OSError, RuntimeError) as error:
        sys.exit(f"example: {error}")
