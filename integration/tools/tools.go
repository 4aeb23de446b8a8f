// Package tools pins the real clients, daemons and runtimes that the tests and benches use as peers.
package tools
