'use strict';
// What the OCI specifications say of images and of the runtime, as far as the example needs it.

const { createHash } = require('node:crypto');

const CAPABILITIES = ['CAP_CHOWN', 'CAP_DAC_OVERRIDE', 'CAP_FOWNER', 'CAP_KILL', 'CAP_SETGID', 'CAP_SETUID'];
const NAMESPACES = ['pid', 'ipc', 'uts', 'mount', 'network'];

/** This machine's architecture, as images name it. */
const architecture = { x64: 'amd64' }[process.arch] ?? process.arch;

/** The manifest in an index that is for this machine. */
function choose(manifests) {
  const ours = manifests.find((m) => m.platform?.os === 'linux' && m.platform.architecture === architecture);
  if (!ours) throw new Error(`the image has nothing for linux/${architecture}`);
  return ours;
}

/** The name of the snapshot of these layers one upon the other (image-spec, config.md). */
function chainId(diffIds) {
  const join = (chain, diffId) => 'sha256:' + createHash('sha256').update(`${chain} ${diffId}`).digest('hex');
  return diffIds.reduce(join);
}

/** A process that runs a shell script with the image's environment. */
function processOf(image, script) {
  return {
    user: { uid: 0, gid: 0 },
    args: ['/bin/sh', '-c', script],
    env: image.Env ?? ['PATH=/usr/sbin:/usr/bin:/sbin:/bin'],
    cwd: image.WorkingDir || '/',
    capabilities: { bounding: CAPABILITIES, effective: CAPABILITIES, permitted: CAPABILITIES },
    noNewPrivileges: true,
  };
}

/** A runtime specification: a container with namespaces of its own and few capabilities. */
function specOf(namespace, id, image, script) {
  const mount = (destination, type, ...options) =>
    ({ destination, type, source: type, options: ['nosuid', ...options] });
  return {
    ociVersion: '1.1.0',
    process: processOf(image, script),
    root: { path: 'rootfs' },
    hostname: id,
    mounts: [
      mount('/proc', 'proc', 'noexec', 'nodev'),
      mount('/dev', 'tmpfs', 'strictatime', 'mode=755', 'size=65536k'),
      mount('/dev/pts', 'devpts', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620'),
      mount('/dev/shm', 'tmpfs', 'noexec', 'nodev', 'mode=1777', 'size=65536k'),
      mount('/sys', 'sysfs', 'noexec', 'nodev', 'ro'),
    ],
    linux: {
      cgroupsPath: `/${namespace}/${id}`,
      namespaces: NAMESPACES.map((type) => ({ type })),
      maskedPaths: ['/proc/kcore', '/proc/keys', '/proc/timer_list', '/sys/firmware'],
      readonlyPaths: ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'],
    },
  };
}

module.exports = { architecture, choose, chainId, processOf, specOf };
