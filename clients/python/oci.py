"""What the OCI specifications say of images and of the runtime, as far as the example needs it."""

import datetime
import hashlib
import platform

CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]
MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]


def architecture():
    """This machine's architecture, as images name it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def fits(candidate):
    return candidate.get("os") == "linux" and candidate.get("architecture") == architecture()


def in_an_hour():
    """RFC 3339."""
    when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def chain_id(diff_ids):
    """The name of the snapshot of these layers one upon the other (image-spec, config.md)."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
    return chain


def process(image, script):
    """A process that runs a shell script with the image's environment."""
    return {
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", script],
        "env": image.get("Env") or ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": image.get("WorkingDir") or "/",
        "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
    }


def spec(namespace, id, image, script):
    """A runtime specification: a container with namespaces of its own and few capabilities."""
    def mount(target, kind, *options):
        return {"destination": target, "type": kind, "source": kind, "options": ["nosuid", *options]}

    return {
        "ociVersion": "1.1.0",
        "process": process(image, script),
        "root": {"path": "rootfs"},
        "hostname": id,
        "mounts": [
            mount("/proc", "proc", "noexec", "nodev"),
            mount("/dev", "tmpfs", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
            mount("/dev/shm", "tmpfs", "noexec", "nodev", "mode=1777", "size=65536k"),
            mount("/sys", "sysfs", "noexec", "nodev", "ro"),
        ],
        "linux": {
            "cgroupsPath": f"/{namespace}/{id}",
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": MASKED,
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }
