//! The product without RPC: images, containers, tasks, transfer, events, garbage collection
