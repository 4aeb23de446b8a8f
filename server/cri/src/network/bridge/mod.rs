//! The built-in network: each pod is a port of one bridge, with an address of each range.
//!
//! What it changes on the host: the bridge and its ports; one nftables table of the bridge's name; `route_localnet` of
//! the bridge, so that host ports answer on 127.0.0.1; and forwarding of IPv4, and of IPv6 where there is such a range.
//! On ::1 connections to host ports are refused. With CNI's `portmap` they time out: the request reaches the pod, but
//! IPv6 has no `route_localnet`, and the answer, whose destination is ::1 again once it is back, is dropped where it comes in.
//! Interfaces that learn from router advertisements go on doing so. Forwarding stays on when the last pod has gone.
//! A firewall that drops forwarded packets by default must let the bridge's pass.
//!
//! Traffic limits are token buckets at both ends of the pod's link: into the pod on the host's end, out of it on the
//! pod's end, where a pod that may administer its network can lift it.

mod ledger;
pub(super) mod link;
mod nft;
mod rules;
mod sysctl;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

pub(super) use ledger::Holding;
use ledger::Ledger;
use link::{Mac, Veth};

use super::namespace::{enter_file, in_thread, open};
use super::netlink::{Request, Socket};
use super::{Bandwidth, BridgeConfig, Error, PortMapping, Result, cni};

/// The pod's interface.
pub(super) const INTERFACE: &str = "eth0";
/// Ports of the bridge bear this and the address in hexadecimal.
const PORT: &str = "gnt";

/// The built-in network. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Bridge {
    config: Arc<BridgeConfig>,
    ledger: Arc<Mutex<Ledger>>,
    /// Whether bridge and table are known to be there; whoever changes the table holds it.
    ready: Arc<tokio::sync::Mutex<bool>>,
}

impl Bridge {
    /// The network as set; IPv6 is left out where the host has none.
    pub(super) fn new(mut config: BridgeConfig) -> Bridge {
        config.subnets.retain(|subnet| subnet.network().is_ipv4() || sysctl::has_ipv6());
        let ledger = Arc::new(Mutex::new(Ledger::new(&config.subnets)));
        Bridge { config: Arc::new(config), ledger, ready: Arc::default() }
    }

    /// It, in the form of a network by plug-ins; `built-in` is the name of no program.
    pub(super) fn describe(&self) -> Value {
        let subnets: Vec<String> = self.config.subnets.iter().map(ToString::to_string).collect();
        let mut plugin = cni::plugin("built-in");
        plugin.insert("bridge".into(), self.config.name.clone().into());
        plugin.insert("subnets".into(), json!(subnets));
        let source = json!(plugin).to_string();
        cni::network(&self.config.name, "1.0.0", &[plugin], &source, INTERFACE)
    }

    pub(super) fn restore(&self, id: &str, holding: Holding) {
        self.ledger().restore(id, holding);
    }

    pub(super) fn reserve(&self, id: &str, ports: &[PortMapping]) -> Result<Holding> {
        self.ledger().reserve(id, ports)
    }

    /// Gives back what a pod holds; only when nothing of it is left in the kernel.
    pub(super) fn release(&self, id: &str) {
        self.ledger().release(id);
    }

    /// Connects a namespace. What it holds must be reserved.
    pub(super) async fn attach(&self, netns: &Path, holding: &Holding, limits: Option<Bandwidth>) -> Result<Value> {
        let plan = Plan {
            config: self.config.clone(),
            netns: netns.to_owned(),
            holding: holding.clone(),
            limits: limits.unwrap_or_default(),
        };
        self.prepare(false).await?;
        if let Err(error) = in_thread({
            let plan = plan.clone();
            move || plan.connect()
        })
        .await
        {
            if !plan.bridge_is_gone() {
                return Err(error);
            }
            self.prepare(true).await?;
            in_thread({
                let plan = plan.clone();
                move || plan.connect()
            })
            .await?;
        }
        self.change_table(holding, Change::Add).await?;
        Ok(plan.result())
    }

    /// Disconnects a pod, whose namespace may be gone.
    pub(super) async fn detach(&self, holding: &Holding) -> Result<()> {
        let Some(port) = port_name(&holding.addresses) else { return Ok(()) };
        in_thread(move || disconnect(&port)).await?;
        self.change_table(holding, Change::Delete).await
    }

    /// Removes ports of the bridge that no pod holds: what a crash left behind.
    pub(super) async fn sweep(&self, held: Vec<Holding>) -> Result<()> {
        let config = self.config.clone();
        in_thread(move || {
            let held: Vec<String> = held.iter().filter_map(|h| port_name(&h.addresses)).collect();
            let mut socket = Socket::route().map_err(Error::kernel("open netlink"))?;
            let links = link::links(&mut socket).map_err(Error::kernel("list links"))?;
            let bridge = links.iter().find(|l| l.name == config.name && l.bridge).map(|l| l.index);
            let ours = links.iter().filter(|l| l.controller.is_some() && l.controller == bridge);
            for stale in ours.filter(|l| l.name.starts_with(PORT) && !held.contains(&l.name)) {
                disconnect(&stale.name)?;
            }
            Ok(())
        })
        .await
    }

    /// Makes sure that bridge and table are there.
    async fn prepare(&self, again: bool) -> Result<()> {
        let mut ready = self.ready.lock().await;
        if *ready && !again {
            return Ok(());
        }
        let (config, entries) = (self.config.clone(), self.ledger().entries());
        in_thread(move || {
            make_bridge(&config)?;
            sysctl::forward(&config)?;
            commit(&config, rules::install(&config, &entries))
        })
        .await?;
        *ready = true;
        Ok(())
    }

    /// Adds or deletes a pod's entries; a table that is not as it should be is made anew from the ledger.
    async fn change_table(&self, holding: &Holding, change: Change) -> Result<()> {
        let entries = holding.entries();
        if entries.is_empty() {
            return Ok(());
        }
        let _turn = self.ready.lock().await;
        let config = self.config.clone();
        let mut all = self.ledger().entries();
        if change == Change::Delete {
            all.retain(|entry| !entries.contains(entry));
        }
        in_thread(move || {
            let requests = match change {
                Change::Add => rules::add(&config, &entries),
                Change::Delete => rules::delete(&config, &entries),
            };
            commit(&config, requests).or_else(|_| commit(&config, rules::install(&config, &all)))
        })
        .await
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add,
    Delete,
}

/// Name of the bridge's port that leads to the pod with these addresses. An address has one holder, so a name has too.
fn port_name(addresses: &[IpAddr]) -> Option<String> {
    let bytes = match addresses.first()? {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => (u128::from(*v6) as u32).to_be_bytes(),
    };
    Some(format!("{PORT}{:08x}", u32::from_be_bytes(bytes)))
}

/// The Ethernet address that goes with an IP address: neighbours that remember it stay right when the address gets
/// another holder.
fn mac_of(address: IpAddr) -> Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => (u128::from(v6) as u32).to_be_bytes(),
    };
    [0x0a, 0x58, a, b, c, d]
}

/// What it takes to connect one pod.
#[derive(Clone, Debug)]
struct Plan {
    config: Arc<BridgeConfig>,
    netns: PathBuf,
    holding: Holding,
    limits: Bandwidth,
}

impl Plan {
    /// Connects; the calling thread ends up in the pod's namespace.
    fn connect(&self) -> Result<()> {
        let port = self.port();
        let namespace = open(&self.netns)?;
        let failed = |what: &str| Error::kernel(format!("connect {port} to {}: {what}", self.config.name));
        let bridge = link::index(&self.config.name).map_err(failed("find the bridge"))?;
        let veth = link::add_veth(&Veth {
            name: &port,
            bridge,
            peer: INTERFACE,
            peer_mac: self.mac(),
            namespace: std::os::fd::AsFd::as_fd(&namespace),
            mtu: self.config.mtu,
        });
        let mut host = Socket::route().map_err(failed("open netlink"))?;
        let made = match host.all(std::slice::from_ref(&veth)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Nobody holds its address: it was left behind. If it is the pod's end that exists, it fails again.
                let _ = host.all(&[link::remove(&port)]);
                host.all(&[veth])
            }
            made => made,
        };
        made.map_err(failed("make the link"))?;
        if !self.holding.ports.is_empty() {
            host.all(&[link::reflect(&port)]).map_err(failed("let it reach itself"))?;
        }
        self.limit(&mut host, &port, self.limits.ingress_rate, self.limits.ingress_burst)?;
        enter_file(&namespace)?;
        let mut inside = Socket::route().map_err(failed("open netlink"))?;
        self.configure(&mut inside).map_err(failed("set up the pod's end"))?;
        self.limit(&mut inside, INTERFACE, self.limits.egress_rate, self.limits.egress_burst)
    }

    /// Addresses and routes inside the pod.
    fn configure(&self, inside: &mut Socket) -> io::Result<()> {
        let link = link::index(INTERFACE)?;
        let mut requests = vec![link::up(INTERFACE)?];
        for (address, subnet) in self.addresses() {
            requests.push(link::add_address(link, address, subnet.prefix()));
            requests.push(link::add_default_route(link, subnet.gateway()));
        }
        inside.all(&requests)
    }

    /// Sets the limit of what leaves a link, given in bits.
    fn limit(&self, socket: &mut Socket, name: &str, rate: u64, burst: u64) -> Result<()> {
        if rate < 8 {
            return Ok(());
        }
        let set = link::index(name).and_then(|link| socket.all(&[link::limit_rate(link, rate / 8, burst / 8)]));
        set.map_err(Error::kernel(format!("limit the traffic of {name}")))
    }

    fn addresses(&self) -> impl Iterator<Item = (IpAddr, &super::Subnet)> {
        let subnet_of = |address: &IpAddr| self.config.subnets.iter().find(|s| s.index(*address).is_some());
        self.holding.addresses.iter().filter_map(move |address| Some((*address, subnet_of(address)?)))
    }

    fn port(&self) -> String {
        port_name(&self.holding.addresses).unwrap_or_default()
    }

    fn mac(&self) -> Mac {
        self.holding.addresses.first().map(|a| mac_of(*a)).unwrap_or_default()
    }

    fn bridge_is_gone(&self) -> bool {
        link::index(&self.config.name).is_err()
    }

    /// What was done, as a CNI result.
    fn result(&self) -> Value {
        let text = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        let ips: Vec<Value> = self
            .addresses()
            .map(|(ip, s)| json!({"address": format!("{ip}/{}", s.prefix()), "gateway": s.gateway(), "interface": 2}))
            .collect();
        let routes: Vec<Value> = self
            .addresses()
            .map(|(ip, s)| json!({"dst": if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": s.gateway()}))
            .collect();
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": self.config.name},
                {"name": self.port()},
                {"name": INTERFACE, "mac": text(self.mac()), "sandbox": self.netns},
            ],
            "ips": ips,
            "routes": routes,
            "dns": {},
        })
    }
}

/// Removes a port of the bridge, and with it the pod's end.
fn disconnect(port: &str) -> Result<()> {
    let failed = Error::kernel(format!("remove link {port}"));
    let removed = Socket::route().and_then(|mut socket| socket.all(&[link::remove(port)]));
    match removed {
        Err(error) if error.raw_os_error() != Some(nix::libc::ENODEV) => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Makes the bridge, or finds it.
fn make_bridge(config: &BridgeConfig) -> Result<()> {
    let failed = |what: &str| Error::kernel(format!("bridge {}: {what}", config.name));
    let mut socket = Socket::route().map_err(failed("open netlink"))?;
    free_ranges(config, &mut socket)?;
    let Some(first) = config.subnets.first() else {
        return Err(Error::Invalid { field: "subnets", reason: "the built-in network has no range".into() });
    };
    match socket.all(&[link::add_bridge(&config.name, mac_of(first.gateway()), config.mtu)]) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("make it")(error)),
        _ => {}
    }
    let links = link::links(&mut socket).map_err(failed("list links"))?;
    let Some(bridge) = links.iter().find(|l| l.name == config.name) else {
        return Err(failed("find it")(io::ErrorKind::NotFound.into()));
    };
    if !bridge.bridge {
        return Err(failed("find it")(io::Error::other("an interface of this name is no bridge")));
    }
    let mut requests = vec![link::up(&config.name).map_err(failed("find it"))?];
    requests.extend(config.subnets.iter().map(|s| link::add_address(bridge.index, s.gateway(), s.prefix())));
    socket.all(&requests).map_err(failed("set it up"))
}

/// Refuses ranges that an interface besides the bridge has already.
fn free_ranges(config: &BridgeConfig, socket: &mut Socket) -> Result<()> {
    let listed = link::addresses(socket).map_err(Error::kernel("list addresses"))?;
    let links = link::links(socket).map_err(Error::kernel("list links"))?;
    let name = |index| links.iter().find(|l| l.index == index).map_or("?", |l| l.name.as_str());
    for other in listed.iter().filter(|a| name(a.link) != config.name) {
        if let Some(subnet) = config.subnets.iter().find(|s| s.overlaps(&other.subnet)) {
            return Err(Error::Overlap {
                subnet: subnet.to_string(),
                other: other.subnet.to_string(),
                interface: name(other.link).into(),
            });
        }
    }
    Ok(())
}

/// Has the kernel carry out all of the requests, or none.
fn commit(config: &BridgeConfig, requests: Vec<Request>) -> Result<()> {
    if requests.is_empty() {
        return Ok(());
    }
    let done = Socket::netfilter().and_then(|mut socket| socket.batch(nft::begin(), &requests, nft::end()));
    done.map_err(Error::kernel(format!("change nftables table inet {}", config.name)))
}
