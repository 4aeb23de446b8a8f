//! Who holds which address and which host port: pure, and made anew from the records at start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::rules::{self, Entry};
use crate::network::{Error, PortMapping, Result, Subnet};

/// What a pod holds of the built-in network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::network) struct Holding {
    /// Its addresses: one of each range.
    pub(in crate::network) addresses: Vec<IpAddr>,
    /// Host ports that lead to it.
    pub(in crate::network) ports: Vec<PortMapping>,
}

impl Holding {
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.ports.iter().flat_map(|mapping| rules::entries(mapping, &self.addresses)).collect()
    }
}

/// All holdings.
#[derive(Debug)]
pub(super) struct Ledger {
    pools: Vec<Pool>,
    holders: BTreeMap<String, Holding>,
}

impl Ledger {
    pub(super) fn new(subnets: &[Subnet]) -> Ledger {
        let pools = subnets.iter().map(|subnet| Pool { subnet: *subnet, taken: BTreeSet::new(), next: 0 }).collect();
        Ledger { pools, holders: BTreeMap::new() }
    }

    /// Notes what a record says. Of two records with the same address, both keep it until they are undone.
    pub(super) fn restore(&mut self, id: &str, holding: Holding) {
        for pool in &mut self.pools {
            let indices: Vec<u64> = holding.addresses.iter().filter_map(|a| pool.subnet.index(*a)).collect();
            pool.next = indices.iter().map(|i| i + 1).chain([pool.next]).max().unwrap_or_default();
            pool.taken.extend(indices);
        }
        self.holders.insert(id.to_owned(), holding);
    }

    /// Gives a pod one address of each range, and its host ports; or nothing at all.
    pub(super) fn reserve(&mut self, id: &str, ports: &[PortMapping]) -> Result<Holding> {
        let ports: Vec<PortMapping> = ports.iter().filter(|p| p.host_port != 0).cloned().collect();
        self.free_ports(id, &ports)?;
        if let Some(full) = self.pools.iter().find(|p| p.taken.len() as u64 >= p.subnet.capacity()) {
            return Err(Error::Exhausted { subnet: full.subnet.to_string(), capacity: full.subnet.capacity() });
        }
        let addresses = self.pools.iter_mut().map(Pool::take).collect();
        let holding = Holding { addresses, ports };
        self.holders.insert(id.to_owned(), holding.clone());
        Ok(holding)
    }

    /// Takes back all that a pod holds.
    pub(super) fn release(&mut self, id: &str) {
        let Some(holding) = self.holders.remove(id) else { return };
        let others: BTreeSet<IpAddr> = self.holders.values().flat_map(|h| h.addresses.iter().copied()).collect();
        for pool in &mut self.pools {
            for address in holding.addresses.iter().filter(|a| !others.contains(a)) {
                pool.subnet.index(*address).map(|index| pool.taken.remove(&index));
            }
        }
    }

    /// The ways into all pods.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.holders.values().flat_map(Holding::entries).collect()
    }

    fn free_ports(&self, id: &str, wanted: &[PortMapping]) -> Result<()> {
        let held = self.holders.iter().flat_map(|(holder, h)| h.ports.iter().map(move |port| (holder.as_str(), port)));
        let held: Vec<(&str, &PortMapping)> = held.collect();
        for (i, port) in wanted.iter().enumerate() {
            let own = wanted[..i].iter().map(|p| (id, p));
            if let Some((by, _)) = held.iter().copied().chain(own).find(|(_, other)| collide(port, other)) {
                return Err(Error::PortTaken { port: described(port), by: by.to_owned() });
            }
        }
        Ok(())
    }
}

/// Two mappings of a port collide where one of them, on all addresses, would hide the other or be hidden.
fn collide(one: &PortMapping, other: &PortMapping) -> bool {
    let all = |mapping: &PortMapping, v4: bool| match mapping.host_ip {
        None => true,
        Some(ip) => ip.is_unspecified() && ip.is_ipv4() == v4,
    };
    let same_address = match (one.host_ip, other.host_ip) {
        (Some(a), Some(b)) if a == b => true,
        (Some(a), Some(b)) if a.is_ipv4() != b.is_ipv4() => false,
        (Some(a), _) => all(other, a.is_ipv4()) || (other.host_ip.is_some() && a.is_unspecified()),
        (None, _) => true,
    };
    one.host_port == other.host_port && one.protocol == other.protocol && same_address
}

fn described(port: &PortMapping) -> String {
    let address = port.host_ip.map(|ip| format!(" of {ip}")).unwrap_or_default();
    format!("{}/{}{address}", port.host_port, format!("{:?}", port.protocol).to_lowercase())
}

/// The addresses of one range.
#[derive(Debug)]
struct Pool {
    subnet: Subnet,
    taken: BTreeSet<u64>,
    /// Where the search goes on: an address that was given back rests as long as possible.
    next: u64,
}

impl Pool {
    /// The next free address. There must be one.
    fn take(&mut self) -> IpAddr {
        let mut index = self.next % self.subnet.capacity();
        while self.taken.contains(&index) {
            index = (index + 1) % self.subnet.capacity();
        }
        self.taken.insert(index);
        self.next = index + 1;
        self.subnet.address(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::network::Protocol;

    fn ledger(subnets: &[&str]) -> Ledger {
        Ledger::new(&subnets.iter().map(|s| s.parse().unwrap()).collect::<Vec<_>>())
    }

    fn port(host_port: u16, host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip }
    }

    #[test]
    fn an_address_that_was_given_back_rests_until_all_others_had_their_turn() {
        let mut ledger = ledger(&["192.0.2.0/29"]);
        let first = ledger.reserve("a", &[]).unwrap().addresses[0];
        ledger.release("a");
        let seen: Vec<IpAddr> = (0..5).map(|i| ledger.reserve(&i.to_string(), &[]).unwrap().addresses[0]).collect();
        assert_eq!(seen.iter().position(|a| *a == first), Some(4));
    }

    #[test]
    fn a_full_range_is_an_error_that_names_it_and_takes_nothing_of_the_other() {
        let mut ledger = ledger(&["fd00::/120", "192.0.2.0/30"]);
        ledger.reserve("a", &[]).unwrap();
        let error = ledger.reserve("b", &[]).unwrap_err().to_string();
        assert!(error.contains("192.0.2.0/30"), "{error}");
        assert_eq!(ledger.pools[0].taken.len(), 1);
    }

    #[test]
    fn a_host_port_has_one_holder_on_an_address() {
        let mut ledger = ledger(&["192.0.2.0/24"]);
        ledger.reserve("a", &[port(80, None), port(81, Some("192.0.2.1"))]).unwrap();
        for taken in [port(80, None), port(80, Some("192.0.2.9")), port(81, Some("0.0.0.0")), port(81, None)] {
            let error = ledger.reserve("b", std::slice::from_ref(&taken)).unwrap_err().to_string();
            assert!(error.contains("taken by pod \"a\""), "{error}");
        }
        ledger.reserve("c", &[port(81, Some("192.0.2.2")), port(81, Some("::")), port(0, None)]).unwrap();
        assert!(ledger.reserve("d", &[port(90, None), port(90, None)]).is_err());
        ledger.release("a");
        ledger.reserve("e", &[port(80, None)]).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u8),
        Release(u8),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..20u8).prop_map(Step::Reserve),
            3 => (0..20u8).prop_map(Step::Release),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        #[test]
        fn no_address_is_lost_or_held_twice(steps in proptest::collection::vec(step(), 1..200)) {
            let subnets = ["192.0.2.0/28", "fd00::/124"];
            let mut book = ledger(&subnets);
            let mut model: BTreeMap<String, Holding> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Reserve(n) if !model.contains_key(&n.to_string()) => match book.reserve(&n.to_string(), &[]) {
                        Ok(holding) => { model.insert(n.to_string(), holding); }
                        Err(_) => prop_assert_eq!(model.len(), 13),
                    },
                    Step::Reserve(_) => {}
                    Step::Release(n) => {
                        book.release(&n.to_string());
                        model.remove(&n.to_string());
                    }
                    Step::Restart => {
                        book = ledger(&subnets);
                        model.iter().for_each(|(id, holding)| book.restore(id, holding.clone()));
                    }
                }
                let held: Vec<IpAddr> = model.values().flat_map(|h| h.addresses.clone()).collect();
                let distinct: BTreeSet<&IpAddr> = held.iter().collect();
                prop_assert_eq!(held.len(), distinct.len());
                prop_assert!(book.pools.iter().all(|p| p.taken.len() == model.len()));
            }
        }
    }
}
