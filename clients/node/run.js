'use strict';
// Pulls an image, runs a container from it, executes a second process in it and removes everything again.
//
//   node run.js SOCKET IMAGE ID

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { once } = require('node:events');
const { createInterface } = require('node:readline');
const { Client, pack, unpack, document } = require('./client');
const oci = require('./oci');

const NAMESPACE = 'example';
const SNAPSHOTTER = 'overlayfs';
const PLATFORM = { os: 'linux', architecture: oci.architecture };
const SIGKILL = 9;
const SIGTERM = 15;

// The first process runs until it is told to end; the second waits until the first is ready for that.
const FIRST = "trap 'echo stopped; exit 7' TERM; echo running; touch /tmp/ready; while :; do sleep 0.05; done";
const SECOND = 'until [ -e /tmp/ready ]; do sleep 0.02; done; echo executed; exit 3';

/** Runs `work` with a list for steps of the cleanup, and takes those steps afterwards, last first. */
async function tidily(work) {
  const steps = [];
  try {
    return await work((step) => steps.push(step));
  } finally {
    for (const step of steps.reverse()) await step();
  }
}

/** Fetches and unpacks an image in the daemon, printing what it tells of its progress. */
async function pull(client, reference) {
  const id = `progress-${process.pid}`;
  const stream = client.duplex('streaming', 'Stream');
  stream.on('error', () => {}); // the transfer itself says what went wrong
  stream.write(pack('containerd.services.streaming.v1.StreamInit', { id }));
  await once(stream, 'data'); // the daemon knows the stream from here on
  stream.on('data', (any) => {
    const p = unpack(any);
    console.log(`pull ${p.event} ${p.name} ${p.progress}/${p.total}`);
  });
  const image = { name: reference, platforms: [PLATFORM], unpacks: [{ platform: PLATFORM, snapshotter: SNAPSHOTTER }] };
  try {
    await client.call('transfer', 'Transfer', {
      source: pack('containerd.types.transfer.OCIRegistry', { reference }),
      destination: pack('containerd.types.transfer.ImageStore', image),
      options: { progress_stream: id },
    });
  } finally {
    stream.end();
  }
}

/** A JSON document of the content store. */
async function blob(client, digest) {
  const chunks = [];
  for await (const chunk of client.stream('content', 'Read', { digest })) chunks.push(chunk.data);
  return JSON.parse(Buffer.concat(chunks));
}

/** The image's configuration for our platform, by way of its index, if it has one, and manifest. */
async function imageConfig(client, reference) {
  const { image } = await client.call('images', 'Get', { name: reference });
  let manifest = await blob(client, image.target.digest);
  if (manifest.manifests) manifest = await blob(client, oci.choose(manifest.manifests).digest);
  return blob(client, manifest.config.digest);
}

/** Prints the container's events; resolves when its task has been deleted. */
function watch(client, id) {
  const stream = client.stream('events', 'Subscribe', { filters: ['topic~="^/tasks/"'] }, 120);
  const deleted = new Promise((resolve, reject) => {
    stream.on('error', reject);
    stream.on('end', () => reject(new Error('the stream of events ended too early')));
    stream.on('data', ({ topic, event }) => {
      if (unpack(event).container_id !== id) return;
      console.log(`event ${topic}`);
      if (topic === '/tasks/delete') resolve();
    });
  });
  deleted.catch(() => {}); // who waits for it hears of it; without that it is not an error
  return { deleted, cancel: () => stream.cancel() };
}

/** Named pipes for a process's output, copied line by line to ours; `finish` waits for their end. */
function stdio() {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'example-'));
  const paths = { stdout: path.join(directory, 'stdout'), stderr: path.join(directory, 'stderr') };
  execFileSync('mkfifo', Object.values(paths));
  const pipes = Object.values(paths).map((file) => {
    // Not to be held up where nobody ever opens the other end.
    const fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    const pipe = new net.Socket({ fd, readable: true, writable: false });
    createInterface({ input: pipe }).on('line', (line) => console.log(line));
    return pipe;
  });
  const finish = async (started) => {
    if (started) await Promise.all(pipes.map((pipe) => pipe.closed || once(pipe, 'close')));
    for (const pipe of pipes) pipe.destroy();
    fs.rmSync(directory, { recursive: true });
  };
  return { paths, finish };
}

/** Starts the container's task and a second process in it, waits for both; their exit codes. */
function run(client, container_id, rootfs) {
  return tidily(async (later) => {
    const { paths, finish } = stdio();
    let started = false;
    later(() => finish(started));
    await client.call('tasks', 'Create', { container_id, rootfs, ...paths });
    later(() => client.undo('tasks', 'Delete', { container_id }));
    const waiting = client.call('tasks', 'Wait', { container_id });
    waiting.catch(() => {}); // heard of below
    await client.call('tasks', 'Start', { container_id });
    started = true;
    try {
      const second = await execute(client, container_id);
      await client.call('tasks', 'Kill', { container_id, signal: SIGTERM });
      return [(await waiting).exit_status, second];
    } catch (error) {
      await client.undo('tasks', 'Kill', { container_id, signal: SIGKILL });
      await waiting;
      throw error;
    }
  });
}

/** Runs a second process in the container; its exit code. */
function execute(client, container_id) {
  const process = { container_id, exec_id: 'second' };
  return tidily(async (later) => {
    const { paths, finish } = stdio();
    let started = false;
    later(() => finish(started));
    const spec = document('Process', oci.processOf({}, SECOND));
    await client.call('tasks', 'Exec', { ...process, spec, ...paths });
    later(() => client.undo('tasks', 'DeleteProcess', process));
    await client.call('tasks', 'Start', process);
    started = true;
    return (await client.call('tasks', 'Wait', process)).exit_status;
  });
}

async function example(socket, reference, id) {
  const client = new Client(socket, NAMESPACE);
  await tidily(async (later) => {
    later(() => client.close());
    // What is made below belongs to a lease: nothing of it is collected before a record refers to it.
    const expire = new Date(Date.now() + 3600_000).toISOString().replace(/\.\d+/, '');
    const lease = { id: `example-${process.pid}`, labels: { 'containerd.io/gc.expire': expire } };
    await client.call('leases', 'Create', lease);
    later(() => client.undo('leases', 'Delete', { id: lease.id, sync: true }));
    client.metadata.set('containerd-lease', lease.id);
    const events = watch(client, id);
    later(() => events.cancel());

    await pull(client, reference);
    later(() => client.undo('images', 'Delete', { name: reference }));
    const config = await imageConfig(client, reference);
    const snapshot = { snapshotter: SNAPSHOTTER, key: id };
    const parent = oci.chainId(config.rootfs.diff_ids);
    const { mounts } = await client.call('snapshots', 'Prepare', { ...snapshot, parent });
    later(() => client.undo('snapshots', 'Remove', snapshot));
    const spec = document('Spec', oci.specOf(NAMESPACE, id, config.config ?? {}, FIRST));
    const runtime = { name: 'io.containerd.runc.v2' };
    const container = { id, image: reference, snapshotter: SNAPSHOTTER, snapshot_key: id, runtime, spec };
    await client.call('containers', 'Create', { container });
    later(() => client.undo('containers', 'Delete', { id }));

    const [first, second] = await run(client, id, mounts);
    console.log(`exit exec ${second}\nexit container ${first}`);
    if (first !== 7 || second !== 3) throw new Error(`exit codes ${first} and ${second}, expected 7 and 3`);
    await events.deleted;
  });
}

if (process.argv.length !== 5) {
  console.error('usage: node run.js SOCKET IMAGE ID');
  process.exitCode = 2;
} else {
  example(...process.argv.slice(2)).catch((error) => {
    console.error(`example: ${error.message}`);
    process.exitCode = 1;
  });
}
