package example;

import com.google.gson.Gson;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;

/** What the OCI specifications say of images and of the runtime, as far as the example needs it. */
final class Oci {
    private static final List<String> CAPABILITIES =
            List.of("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID");

    private Oci() {}

    /** This machine's architecture, as images name it. */
    static String architecture() {
        return System.getProperty("os.arch").equals("aarch64") ? "arm64" : System.getProperty("os.arch");
    }

    /** The digest of the manifest in an index that is for this machine. */
    static String choose(JsonArray manifests) {
        for (JsonElement each : manifests) {
            JsonObject manifest = each.getAsJsonObject();
            JsonObject platform = manifest.getAsJsonObject("platform");
            if (platform != null && platform.get("os").getAsString().equals("linux")
                    && platform.get("architecture").getAsString().equals(architecture())) {
                return manifest.get("digest").getAsString();
            }
        }
        throw new IllegalStateException("the image has nothing for linux/" + architecture());
    }

    /** The name of the snapshot of these layers one upon the other (image-spec, config.md). */
    static String chainId(JsonArray diffIds) throws NoSuchAlgorithmException {
        MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
        String chain = null;
        for (JsonElement diffId : diffIds) {
            String pair = chain + " " + diffId.getAsString();
            chain = chain == null ? diffId.getAsString()
                    : "sha256:" + HexFormat.of().formatHex(sha256.digest(pair.getBytes(StandardCharsets.UTF_8)));
        }
        return chain;
    }

    /** Part of a runtime specification in an Any: JSON under a name of its own. */
    static Any document(String kind, Object value) {
        return Any.newBuilder()
                .setTypeUrl("types.containerd.io/opencontainers/runtime-spec/1/" + kind)
                .setValue(ByteString.copyFromUtf8(new Gson().toJson(value)))
                .build();
    }

    /** A process that runs a shell script. */
    static Map<String, Object> process(String script) {
        return Map.of(
                "user", Map.of("uid", 0, "gid", 0),
                "args", List.of("/bin/sh", "-c", script),
                "env", List.of("PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
                "cwd", "/",
                "capabilities",
                Map.of("bounding", CAPABILITIES, "effective", CAPABILITIES, "permitted", CAPABILITIES),
                "noNewPrivileges", true);
    }

    /** A runtime specification: a container with namespaces of its own and few capabilities. */
    static Map<String, Object> spec(String namespace, String id, String script) {
        List<Map<String, String>> namespaces = new ArrayList<>();
        for (String kind : List.of("pid", "ipc", "uts", "mount", "network")) {
            namespaces.add(Map.of("type", kind));
        }
        return Map.of(
                "ociVersion", "1.1.0",
                "process", process(script),
                "root", Map.of("path", "rootfs"),
                "hostname", id,
                "mounts", List.of(
                        mount("/proc", "proc", "nosuid", "noexec", "nodev"),
                        mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
                        mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
                        mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
                        mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro")),
                "linux", Map.of(
                        "cgroupsPath", "/" + namespace + "/" + id,
                        "namespaces", namespaces,
                        "maskedPaths", List.of("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"),
                        "readonlyPaths", List.of("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")));
    }

    private static Map<String, Object> mount(String target, String kind, String... options) {
        return Map.of("destination", target, "type", kind, "source", kind, "options", List.of(options));
    }
}
