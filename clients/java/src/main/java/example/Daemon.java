package example;

import containerd.services.containers.v1.ContainersGrpc;
import containerd.services.content.v1.ContentGrpc;
import containerd.services.events.v1.EventsGrpc;
import containerd.services.images.v1.ImagesGrpc;
import containerd.services.leases.v1.LeasesGrpc;
import containerd.services.snapshots.v1.SnapshotsGrpc;
import containerd.services.streaming.v1.StreamingGrpc;
import containerd.services.tasks.v1.TasksGrpc;
import containerd.services.transfer.v1.TransferGrpc;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.stub.AbstractStub;
import io.grpc.stub.MetadataUtils;
import java.util.concurrent.TimeUnit;

/** A connection to a daemon's unix socket. Each call carries the namespace and the lease, and has a deadline. */
final class Daemon implements AutoCloseable {
    private final EventLoopGroup loop = new EpollEventLoopGroup(1);
    private final ManagedChannel connection;
    private final Channel channel;

    Daemon(String socket, String namespace, String lease) {
        connection = NettyChannelBuilder.forAddress(new DomainSocketAddress(socket))
                .overrideAuthority("localhost")
                .eventLoopGroup(loop)
                .channelType(EpollDomainSocketChannel.class)
                .withOption(ChannelOption.SO_KEEPALIVE, null) // of TCP alone
                .usePlaintext()
                .build();
        Metadata headers = new Metadata();
        headers.put(Metadata.Key.of("containerd-namespace", Metadata.ASCII_STRING_MARSHALLER), namespace);
        headers.put(Metadata.Key.of("containerd-lease", Metadata.ASCII_STRING_MARSHALLER), lease);
        channel = ClientInterceptors.intercept(connection, MetadataUtils.newAttachHeadersInterceptor(headers));
    }

    ContainersGrpc.ContainersBlockingStub containers() {
        return soon(ContainersGrpc.newBlockingStub(channel));
    }

    ContentGrpc.ContentBlockingStub content() {
        return soon(ContentGrpc.newBlockingStub(channel));
    }

    EventsGrpc.EventsStub events() {
        return soon(EventsGrpc.newStub(channel));
    }

    ImagesGrpc.ImagesBlockingStub images() {
        return soon(ImagesGrpc.newBlockingStub(channel));
    }

    LeasesGrpc.LeasesBlockingStub leases() {
        return soon(LeasesGrpc.newBlockingStub(channel));
    }

    SnapshotsGrpc.SnapshotsBlockingStub snapshots() {
        return soon(SnapshotsGrpc.newBlockingStub(channel));
    }

    StreamingGrpc.StreamingStub streaming() {
        return soon(StreamingGrpc.newStub(channel));
    }

    TasksGrpc.TasksBlockingStub tasks() {
        return soon(TasksGrpc.newBlockingStub(channel));
    }

    TransferGrpc.TransferBlockingStub transfer() {
        return soon(TransferGrpc.newBlockingStub(channel));
    }

    private static <S extends AbstractStub<S>> S soon(S stub) {
        return stub.withDeadlineAfter(60, TimeUnit.SECONDS);
    }

    @Override
    public void close() {
        connection.shutdownNow();
        loop.shutdownGracefully(0, 1, TimeUnit.SECONDS);
    }
}
