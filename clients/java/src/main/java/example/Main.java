package example;

import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import containerd.events.Task;
import containerd.services.containers.v1.ContainersOuterClass.Container;
import containerd.services.containers.v1.ContainersOuterClass.CreateContainerRequest;
import containerd.services.containers.v1.ContainersOuterClass.DeleteContainerRequest;
import containerd.services.content.v1.ContentOuterClass.ReadContentRequest;
import containerd.services.events.v1.EventsOuterClass.SubscribeRequest;
import containerd.services.images.v1.ImagesOuterClass.DeleteImageRequest;
import containerd.services.images.v1.ImagesOuterClass.GetImageRequest;
import containerd.services.leases.v1.LeasesOuterClass;
import containerd.services.snapshots.v1.SnapshotsOuterClass.PrepareSnapshotRequest;
import containerd.services.snapshots.v1.SnapshotsOuterClass.RemoveSnapshotRequest;
import containerd.services.streaming.v1.StreamingOuterClass.StreamInit;
import containerd.services.tasks.v1.TasksOuterClass.*;
import containerd.services.transfer.v1.TransferOuterClass.TransferOptions;
import containerd.services.transfer.v1.TransferOuterClass.TransferRequest;
import containerd.types.Event.Envelope;
import containerd.types.MountOuterClass.Mount;
import containerd.types.PlatformOuterClass.Platform;
import containerd.types.transfer.Imagestore.ImageStore;
import containerd.types.transfer.Imagestore.UnpackConfiguration;
import containerd.types.transfer.ProgressOuterClass.Progress;
import containerd.types.transfer.Registry.OCIRegistry;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** Pulls an image, runs a container from it, executes a second process in it and removes everything again. */
public final class Main {
    private static final String NAMESPACE = "example";
    private static final String SNAPSHOTTER = "overlayfs";
    private static final Platform PLATFORM =
            Platform.newBuilder().setOs("linux").setArchitecture(Oci.architecture()).build();
    private static final int SIGKILL = 9;
    private static final int SIGTERM = 15;

    // The first process runs until it is told to end; the second waits until the first is ready for that.
    private static final String FIRST =
            "trap 'echo stopped; exit 7' TERM; echo running; touch /tmp/ready; while :; do sleep 0.05; done";
    private static final String SECOND = "until [ -e /tmp/ready ]; do sleep 0.02; done; echo executed; exit 3";

    /** A step of the cleanup, taken at the end of a try block. */
    private interface Undo extends AutoCloseable {
        @Override
        void close();

        /** A step for which it is well when the thing is gone already. */
        static Undo by(Runnable step) {
            return () -> {
                try {
                    step.run();
                } catch (StatusRuntimeException e) {
                    if (e.getStatus().getCode() != Status.Code.NOT_FOUND) {
                        throw e;
                    }
                }
            };
        }
    }

    private final Daemon daemon;
    private final String reference;
    private final String id;

    private Main(Daemon daemon, String reference, String id) {
        this.daemon = daemon;
        this.reference = reference;
        this.id = id;
    }

    public static void main(String[] args) {
        if (args.length != 3) {
            System.err.println("usage: example SOCKET IMAGE ID");
            System.exit(2);
        }
        String lease = "example-" + ProcessHandle.current().pid();
        try (Daemon daemon = new Daemon(args[0], NAMESPACE, lease)) {
            new Main(daemon, args[1], args[2]).example(lease);
        } catch (Exception e) {
            System.err.println("example: " + e.getMessage() + (e.getCause() == null ? "" : ": " + e.getCause()));
            System.exit(1);
        }
    }

    /** What is made belongs to a lease: nothing of it is collected before a record refers to it. */
    private void example(String lease) throws Exception {
        String expire = Instant.now().plus(1, ChronoUnit.HOURS).truncatedTo(ChronoUnit.SECONDS).toString();
        daemon.leases().create(LeasesOuterClass.CreateRequest.newBuilder()
                .setId(lease).putLabels("containerd.io/gc.expire", expire).build());
        var delete = LeasesOuterClass.DeleteRequest.newBuilder().setId(lease).setSync(true).build();
        try (Undo leased = Undo.by(() -> daemon.leases().delete(delete))) {
            CompletableFuture<Void> deleted = watch();
            pull();
            var remove = DeleteImageRequest.newBuilder().setName(reference).build();
            try (Undo pulled = Undo.by(() -> daemon.images().delete(remove))) {
                container();
            }
            deleted.get(10, TimeUnit.SECONDS);
        }
    }

    /** Fetches and unpacks the image in the daemon, printing what it tells of its progress. */
    private void pull() throws Exception {
        String stream = "progress-" + ProcessHandle.current().pid();
        CompletableFuture<Void> known = new CompletableFuture<>();
        StreamObserver<Any> ours = daemon.streaming().stream(new Listener<Any>(known) {
            @Override
            public void onNext(Any report) {
                if (known.complete(null)) {
                    return; // the daemon knows the stream from here on
                }
                Progress p = parse(report, Progress.getDefaultInstance());
                System.out.printf("pull %s %s %d/%d%n", p.getEvent(), p.getName(), p.getProgress(), p.getTotal());
            }
        });
        ours.onNext(pack(StreamInit.newBuilder().setId(stream).build()));
        known.get(10, TimeUnit.SECONDS);
        var unpack = UnpackConfiguration.newBuilder().setPlatform(PLATFORM).setSnapshotter(SNAPSHOTTER);
        var image = ImageStore.newBuilder().setName(reference).addPlatforms(PLATFORM).addUnpacks(unpack).build();
        daemon.transfer().transfer(TransferRequest.newBuilder()
                .setSource(pack(OCIRegistry.newBuilder().setReference(reference).build()))
                .setDestination(pack(image))
                .setOptions(TransferOptions.newBuilder().setProgressStream(stream))
                .build());
        ours.onCompleted();
    }

    /** Makes the container on a snapshot of the image, and runs it. */
    private void container() throws Exception {
        var prepare = PrepareSnapshotRequest.newBuilder().setSnapshotter(SNAPSHOTTER).setKey(id)
                .setParent(Oci.chainId(imageConfig().getAsJsonObject("rootfs").getAsJsonArray("diff_ids"))).build();
        List<Mount> mounts = daemon.snapshots().prepare(prepare).getMountsList();
        var remove = RemoveSnapshotRequest.newBuilder().setSnapshotter(SNAPSHOTTER).setKey(id).build();
        var delete = DeleteContainerRequest.newBuilder().setId(id).build();
        try (Undo prepared = Undo.by(() -> daemon.snapshots().remove(remove))) {
            var container = Container.newBuilder().setId(id).setImage(reference)
                    .setSnapshotter(SNAPSHOTTER).setSnapshotKey(id)
                    .setRuntime(Container.Runtime.newBuilder().setName("io.containerd.runc.v2"))
                    .setSpec(Oci.document("Spec", Oci.spec(NAMESPACE, id, FIRST)));
            daemon.containers().create(CreateContainerRequest.newBuilder().setContainer(container).build());
            try (Undo created = Undo.by(() -> daemon.containers().delete(delete))) {
                run(mounts);
            }
        }
    }

    /** Starts the container's task and a second process in it, and waits for both. */
    private void run(List<Mount> mounts) throws Exception {
        try (Output output = new Output()) {
            daemon.tasks().create(CreateTaskRequest.newBuilder().setContainerId(id).addAllRootfs(mounts)
                    .setStdout(output.uri()).setStderr(output.uri()).build());
            var delete = DeleteTaskRequest.newBuilder().setContainerId(id).build();
            try (Undo created = Undo.by(() -> daemon.tasks().delete(delete))) {
                daemon.tasks().start(StartRequest.newBuilder().setContainerId(id).build());
                boolean done = false;
                try {
                    execute();
                    kill(SIGTERM);
                    expect("container", "", 7);
                    done = true;
                } finally {
                    if (!done) {
                        Undo.by(() -> kill(SIGKILL)).close();
                        daemon.tasks().wait(WaitRequest.newBuilder().setContainerId(id).build());
                    }
                }
            }
        }
    }

    /** Runs a second process in the container. */
    private void execute() throws Exception {
        try (Output output = new Output()) {
            daemon.tasks().exec(ExecProcessRequest.newBuilder().setContainerId(id).setExecId("second")
                    .setSpec(Oci.document("Process", Oci.process(SECOND)))
                    .setStdout(output.uri()).setStderr(output.uri()).build());
            var delete = DeleteProcessRequest.newBuilder().setContainerId(id).setExecId("second").build();
            try (Undo added = Undo.by(() -> daemon.tasks().deleteProcess(delete))) {
                daemon.tasks().start(StartRequest.newBuilder().setContainerId(id).setExecId("second").build());
                expect("exec", "second", 3);
            }
        }
    }

    private void kill(int signal) {
        daemon.tasks().kill(KillRequest.newBuilder().setContainerId(id).setSignal(signal).build());
    }

    private void expect(String what, String exec, int code) {
        var wait = WaitRequest.newBuilder().setContainerId(id).setExecId(exec).build();
        int got = daemon.tasks().wait(wait).getExitStatus();
        System.out.println("exit " + what + " " + got);
        if (got != code) {
            throw new IllegalStateException(what + ": exit code " + got + ", expected " + code);
        }
    }

    /** Prints the container's events; completes when its task has been deleted. */
    private CompletableFuture<Void> watch() {
        CompletableFuture<Void> deleted = new CompletableFuture<>();
        var filter = SubscribeRequest.newBuilder().addFilters("topic~=\"^/tasks/\"").build();
        daemon.events().subscribe(filter, new Listener<Envelope>(deleted) {
            @Override
            public void onNext(Envelope envelope) {
                // In every event of a task the container's id is the first field.
                if (!parse(envelope.getEvent(), Task.TaskOOM.getDefaultInstance()).getContainerId().equals(id)) {
                    return;
                }
                System.out.println("event " + envelope.getTopic());
                if (envelope.getTopic().equals("/tasks/delete")) {
                    deleted.complete(null);
                }
            }
        });
        return deleted;
    }

    /** The image's configuration for our platform, by way of its index, if it has one, and manifest. */
    private JsonObject imageConfig() {
        var get = GetImageRequest.newBuilder().setName(reference).build();
        JsonObject manifest = blob(daemon.images().get(get).getImage().getTarget().getDigest());
        if (manifest.has("manifests")) {
            manifest = blob(Oci.choose(manifest.getAsJsonArray("manifests")));
        }
        return blob(manifest.getAsJsonObject("config").get("digest").getAsString());
    }

    /** A JSON document of the content store. */
    private JsonObject blob(String digest) {
        ByteString bytes = ByteString.EMPTY;
        var chunks = daemon.content().read(ReadContentRequest.newBuilder().setDigest(digest).build());
        while (chunks.hasNext()) {
            bytes = bytes.concat(chunks.next().getData());
        }
        return JsonParser.parseString(bytes.toStringUtf8()).getAsJsonObject();
    }

    /** A message in an Any, under its bare name as containerd's own clients send it. */
    private static Any pack(Message message) {
        return Any.newBuilder().setTypeUrl(message.getDescriptorForType().getFullName())
                .setValue(message.toByteString()).build();
    }

    @SuppressWarnings("unchecked")
    private static <M extends Message> M parse(Any any, M kind) {
        try {
            return (M) kind.getParserForType().parseFrom(any.getValue());
        } catch (InvalidProtocolBufferException e) {
            throw new IllegalStateException(any.getTypeUrl() + ": " + e.getMessage());
        }
    }

    /** Listens to a stream; an early end of it is the failure of what waits for it. */
    private abstract static class Listener<T> implements StreamObserver<T> {
        private final CompletableFuture<Void> awaited;

        Listener(CompletableFuture<Void> awaited) {
            this.awaited = awaited;
        }

        @Override
        public void onError(Throwable error) {
            awaited.completeExceptionally(error);
        }

        @Override
        public void onCompleted() {
            awaited.completeExceptionally(new IllegalStateException("the stream ended too early"));
        }
    }
}
