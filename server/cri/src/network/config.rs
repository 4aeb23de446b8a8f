//! What the owner of the networks sets.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Settings of [`Networks`](super::Networks).
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the records of attachments; survives a reboot.
    pub root: PathBuf,
    /// CNI.
    pub cni: CniConfig,
    /// The network that is used when there is no CNI configuration; none: then there is no network.
    pub bridge: Option<BridgeConfig>,
    /// Longest that one call of one plug-in, or one step of the built-in network, may take.
    pub deadline: Duration,
}

/// How CNI configurations and plug-ins are found and used.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Directory of the configurations (`*.conf`, `*.conflist`, `*.json`).
    pub conf_dir: PathBuf,
    /// How many of them are used, in the order of their names; 0: all.
    pub max_conf_num: usize,
    /// Directories of the plug-ins, the first with a plug-in of a name wins.
    pub bin_dirs: Vec<PathBuf>,
    /// libcni's cache (`/var/lib/cni`): results lie in `results/` below.
    pub cache_dir: PathBuf,
    /// Networks of a pod are set up one after the other instead of all at once.
    pub setup_serially: bool,
    /// Which address of several is the pod's first.
    pub ip_pref: IpPreference,
}

/// Which address of several is the pod's first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpPreference {
    /// The first IPv4 address, if there is one.
    #[default]
    Ipv4,
    /// The first IPv6 address, if there is one.
    Ipv6,
    /// The first in the plug-ins' answer.
    Cni,
}

impl FromStr for IpPreference {
    type Err = String;

    /// containerd's words; empty means IPv4.
    fn from_str(text: &str) -> Result<IpPreference, String> {
        match text {
            "" | "ipv4" => Ok(IpPreference::Ipv4),
            "ipv6" => Ok(IpPreference::Ipv6),
            "cni" => Ok(IpPreference::Cni),
            other => Err(format!("ip_pref {other:?}: want \"ipv4\", \"ipv6\" or \"cni\"")),
        }
    }
}

/// The built-in network.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// Name of the bridge, and of the nftables table; at most 15 bytes.
    pub name: String,
    /// Ranges that pods get one address each from: one of IPv4, one of IPv6, or both.
    pub subnets: Vec<Subnet>,
    /// Largest packet in bytes; none: the kernel's default.
    pub mtu: Option<u32>,
}

impl Default for BridgeConfig {
    fn default() -> BridgeConfig {
        let subnet = |text: &str| Subnet::from_str(text).ok();
        BridgeConfig {
            name: "gantry0".into(),
            subnets: [subnet("10.87.0.0/16"), subnet("fd6a:4e67:7279::/64")].into_iter().flatten().collect(),
            mtu: None,
        }
    }
}

/// A range of addresses: `10.87.0.0/16`. The first address after the network's own is the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The range that an address with a prefix of this length lies in.
    pub(crate) fn around(address: IpAddr, prefix: u8) -> Option<Subnet> {
        let whole = Subnet { network: address, prefix };
        let bits = whole.bits();
        if prefix > bits {
            return None;
        }
        let network = match (number(address) & whole.mask(), address) {
            (masked, IpAddr::V4(_)) => IpAddr::V4((masked as u32).into()),
            (masked, IpAddr::V6(_)) => IpAddr::V6(masked.into()),
        };
        Some(Subnet { network, prefix })
    }

    /// The network's address: all host bits are zero.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bridge's own address.
    pub fn gateway(&self) -> IpAddr {
        self.at(1)
    }

    /// How many addresses pods can have. An IPv6 range is used only as far as 2^32.
    pub fn capacity(&self) -> u64 {
        let bits = self.bits() - self.prefix;
        // Besides the network's own address and the gateway, IPv4 has the broadcast address.
        let reserved = if self.network.is_ipv4() { 3 } else { 2 };
        (1u64 << bits.min(32)) - reserved
    }

    /// The pod address of this index, below [`Subnet::capacity`].
    pub fn address(&self, index: u64) -> IpAddr {
        self.at(u128::from(index) + 2)
    }

    /// The index of an address, where it is one that pods can have.
    pub fn index(&self, address: IpAddr) -> Option<u64> {
        if address.is_ipv4() != self.network.is_ipv4() {
            return None;
        }
        let index = number(address).checked_sub(number(self.network))?.checked_sub(2)?;
        u64::try_from(index).ok().filter(|i| *i < self.capacity())
    }

    /// Whether an address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4() && (number(address) ^ number(self.network)) & self.mask() == 0
    }

    /// Whether two ranges have an address in common.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    fn bits(&self) -> u8 {
        if self.network.is_ipv4() { 32 } else { 128 }
    }

    fn mask(&self) -> u128 {
        let all = if self.network.is_ipv4() { u128::from(u32::MAX) } else { u128::MAX };
        all & all.checked_shl(u32::from(self.bits() - self.prefix)).unwrap_or(0)
    }

    fn at(&self, offset: u128) -> IpAddr {
        let number = number(self.network) + offset;
        match self.network {
            IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// Address, slash, length of the prefix. At least four addresses must be left.
    fn from_str(text: &str) -> Result<Subnet, String> {
        let bad = |why: &str| format!("subnet {text:?}: {why}");
        let (address, prefix) = text.split_once('/').ok_or_else(|| bad("want ADDRESS/PREFIX"))?;
        let network: IpAddr = address.parse().map_err(|_| bad("not an IP address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| bad("the prefix is no number"))?;
        let subnet = Subnet { network, prefix };
        if prefix == 0 || prefix > subnet.bits() - 2 {
            return Err(bad(&format!("the prefix must be from 1 to {}", subnet.bits() - 2)));
        }
        if number(network) & !subnet.mask() != 0 {
            return Err(bad("bits after the prefix are set"));
        }
        Ok(subnet)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_gives_all_addresses_but_its_own_its_gateway_and_the_broadcast() {
        let small = subnet("192.0.2.0/29");
        assert_eq!(small.gateway().to_string(), "192.0.2.1");
        let all: Vec<String> = (0..small.capacity()).map(|i| small.address(i).to_string()).collect();
        assert_eq!(all, ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"]);
        assert_eq!(small.index("192.0.2.6".parse().unwrap()), Some(4));
        for no in ["192.0.2.0", "192.0.2.1", "192.0.2.7", "192.0.3.2", "::2"] {
            assert_eq!(small.index(no.parse().unwrap()), None, "{no}");
        }
    }

    #[test]
    fn a_wide_range_is_counted_without_overflow() {
        let wide = subnet("fd00::/64");
        assert_eq!(wide.capacity(), (1 << 32) - 2);
        assert_eq!(wide.address(0).to_string(), "fd00::2");
        assert!(wide.contains("fd00::ffff:0:1".parse().unwrap()));
        assert!(!wide.contains("fd00:0:0:1::1".parse().unwrap()));
        assert_eq!(subnet("0.0.0.0/1").capacity(), (1 << 31) - 3);
    }

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        assert!(subnet("10.0.0.0/8").overlaps(&subnet("10.87.0.0/16")));
        assert!(subnet("10.87.0.0/16").overlaps(&subnet("10.0.0.0/8")));
        assert!(!subnet("10.87.0.0/16").overlaps(&subnet("10.88.0.0/16")));
        assert!(!subnet("10.0.0.0/8").overlaps(&subnet("fd00::/64")));
    }

    #[test]
    fn a_subnet_that_makes_no_sense_is_refused_with_the_reason() {
        for (text, why) in [
            ("10.0.0.0", "want ADDRESS/PREFIX"),
            ("10.0.0/8", "not an IP address"),
            ("10.0.0.0/x", "no number"),
            ("10.0.0.0/0", "from 1 to 30"),
            ("10.0.0.0/31", "from 1 to 30"),
            ("fd00::/127", "from 1 to 126"),
            ("10.0.0.1/24", "bits after the prefix"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
