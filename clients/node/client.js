'use strict';
// containerd's services as promises: the definitions are read from proto/defs as they are, nothing is generated.

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const DEFS = path.resolve(__dirname, '../../proto/defs');
const SERVICES = ['containers', 'content', 'events', 'images', 'leases', 'snapshots', 'streaming', 'tasks', 'transfer'];
const FILES = SERVICES.map((name) => `containerd/services/${name}/v1/${name}.proto`).concat(
  ['imagestore', 'progress', 'registry'].map((name) => `containerd/types/transfer/${name}.proto`),
  'containerd/events/task.proto',
);

// For what travels inside of an Any.
const types = new protobuf.Root();
types.resolvePath = (_origin, target) =>
  fs.existsSync(path.join(DEFS, target)) ? path.join(DEFS, target) : target;
types.loadSync(FILES, { keepCase: true });

/** A message in an Any, under its bare name as containerd's own clients send it. */
function pack(name, value) {
  const type = types.lookupType(name);
  return { type_url: name, value: Buffer.from(type.encode(type.fromObject(value)).finish()) };
}

/** The message in an Any. */
function unpack(any) {
  return types.lookupType(any.type_url.split('/').pop()).decode(any.value);
}

/** Part of a runtime specification in an Any: JSON under a name of its own. */
function document(kind, value) {
  return {
    type_url: `types.containerd.io/opencontainers/runtime-spec/1/${kind}`,
    value: Buffer.from(JSON.stringify(value)),
  };
}

/** The services on one connection; each call carries the namespace and has a deadline. */
class Client {
  constructor(socket, namespace) {
    const definition = loader.loadSync(FILES, { includeDirs: [DEFS], keepCase: true, longs: Number, defaults: true });
    const services = grpc.loadPackageDefinition(definition).containerd.services;
    this.metadata = new grpc.Metadata();
    this.metadata.set('containerd-namespace', namespace);
    this.stubs = {};
    for (const name of SERVICES) {
      const Service = services[name].v1[name[0].toUpperCase() + name.slice(1)];
      this.stubs[name] = new Service(`unix://${path.resolve(socket)}`, grpc.credentials.createInsecure());
    }
  }

  /** One request, one answer. */
  call(service, method, request, seconds = 60) {
    return new Promise((resolve, reject) => {
      const answered = (error, answer) => (error ? reject(error) : resolve(answer));
      this.stubs[service][method](request, this.metadata, deadline(seconds), answered);
    });
  }

  /** A call of the cleanup: what is gone already is as wanted. */
  async undo(service, method, request) {
    try {
      await this.call(service, method, request, 10);
    } catch (error) {
      if (error.code !== grpc.status.NOT_FOUND) throw error;
    }
  }

  /** One request, a stream of answers. */
  stream(service, method, request, seconds = 60) {
    return this.stubs[service][method](request, this.metadata, deadline(seconds));
  }

  /** A stream both ways. */
  duplex(service, method, seconds = 60) {
    return this.stubs[service][method](this.metadata, deadline(seconds));
  }

  close() {
    for (const stub of Object.values(this.stubs)) stub.close();
  }
}

function deadline(seconds) {
  return { deadline: Date.now() + seconds * 1000 };
}

module.exports = { Client, pack, unpack, document };
