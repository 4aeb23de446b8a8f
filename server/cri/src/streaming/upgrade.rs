//! From an HTTP request to a connection of streams: what the client offers, and what is taken of it.

use http::{HeaderMap, header};

use super::status::Version;
use super::websocket::Form;

/// A protocol that both sides speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) carrier: Carrier,
    /// The protocol's name for the answer; none where the client named none.
    pub(super) name: Option<String>,
}

/// What carries the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// SPDY, at once.
    Spdy(Version),
    /// Channels of a WebSocket.
    Channels(Form, Version),
    /// SPDY in messages of a WebSocket.
    Tunnel,
}

/// What a client wants of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Command,
    PortForward,
}

/// Header in which SPDY clients offer versions, one each or several with commas.
pub(super) const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// What is spoken instead, for clients whose offer is refused.
pub(super) const ACCEPTED: &str = "x-accepted-stream-protocol-versions";

const COMMANDS: [(&str, Version); 5] = [
    ("v5.channel.k8s.io", Version::V5),
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
];
const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNELS: [&str; 2] = ["SPDY/3.1+portforward.k8s.io", "v2.portforward.k8s.io"];

/// Why a request cannot be upgraded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It asks for no upgrade that is known.
    NoUpgrade,
    /// It offers nothing that is spoken here; this is what is.
    NoProtocol(Vec<String>),
    /// It is no proper WebSocket request.
    BadWebSocket(&'static str),
}

/// Chooses a protocol: over SPDY the client's order counts, as over WebSocket.
pub(super) fn choose(headers: &HeaderMap, purpose: Purpose) -> Result<Chosen, Refused> {
    let upgrades = offers(headers, header::UPGRADE);
    let asks = offers(headers, header::CONNECTION).iter().any(|token| token.eq_ignore_ascii_case("upgrade"));
    let wants = |name: &str| asks && upgrades.iter().any(|upgrade| upgrade.eq_ignore_ascii_case(name));
    if wants("websocket") {
        return websocket(headers, purpose);
    }
    if wants("SPDY/3.1") {
        return spdy(headers, purpose);
    }
    Err(Refused::NoUpgrade)
}

fn spdy(headers: &HeaderMap, purpose: Purpose) -> Result<Chosen, Refused> {
    let offered = offers(headers, STREAM_PROTOCOL);
    let known = |name: &String| match purpose {
        // Version 5 is about WebSocket only.
        Purpose::Command => version(name).filter(|v| *v <= Version::V4),
        Purpose::PortForward => (name == PORT_FORWARD).then_some(Version::V1),
    };
    if offered.is_empty() {
        return Ok(Chosen { carrier: Carrier::Spdy(Version::V1), name: None });
    }
    let found = offered.into_iter().find_map(|name| Some((known(&name)?, name)));
    let (version, name) = found.ok_or_else(|| Refused::NoProtocol(spoken(purpose)))?;
    Ok(Chosen { carrier: Carrier::Spdy(version), name: Some(name) })
}

fn spoken(purpose: Purpose) -> Vec<String> {
    match purpose {
        Purpose::Command => COMMANDS[1..].iter().map(|(name, _)| (*name).to_owned()).collect(),
        Purpose::PortForward => vec![PORT_FORWARD.to_owned()],
    }
}

fn websocket(headers: &HeaderMap, purpose: Purpose) -> Result<Chosen, Refused> {
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        return Err(Refused::BadWebSocket("Sec-WebSocket-Version must be 13"));
    }
    if !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        return Err(Refused::BadWebSocket("Sec-WebSocket-Key is missing"));
    }
    let offered = offers(headers, header::SEC_WEBSOCKET_PROTOCOL);
    if offered.is_empty() {
        let form = Form { base64: false, closes: false };
        return Ok(Chosen { carrier: Carrier::Channels(form, Version::V1), name: None });
    }
    let known = |name: &String| {
        if purpose == Purpose::PortForward && TUNNELS.contains(&name.as_str()) {
            return Some(Carrier::Tunnel);
        }
        let (version, base64) = channels(name)?;
        Some(Carrier::Channels(Form { base64, closes: version >= Version::V5 }, version))
    };
    let found = offered.into_iter().find_map(|name| Some((known(&name)?, name)));
    let (carrier, name) = found.ok_or_else(|| {
        let mut all: Vec<String> = COMMANDS.iter().map(|(name, _)| (*name).to_owned()).collect();
        all.extend(["v4.base64.channel.k8s.io", "base64.channel.k8s.io"].map(str::to_owned));
        if purpose == Purpose::PortForward {
            all.extend(TUNNELS.map(str::to_owned));
        }
        Refused::NoProtocol(all)
    })?;
    Ok(Chosen { carrier, name: Some(name) })
}

fn version(name: &str) -> Option<Version> {
    COMMANDS.iter().find(|(known, _)| *known == name).map(|(_, version)| *version)
}

/// A protocol of channels, and whether it is written as text.
fn channels(name: &str) -> Option<(Version, bool)> {
    let plain = name.replacen("base64.", "", 1);
    let base64 = plain != name;
    version(&plain).filter(|v| !base64 || *v <= Version::V4).map(|version| (version, base64))
}

/// Words of a header, from all its lines.
fn offers(headers: &HeaderMap, name: impl header::AsHeaderName) -> Vec<String> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn by_spdy(protocols: &[&str], purpose: Purpose) -> Result<Chosen, Refused> {
        let mut map = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        protocols.iter().for_each(|p| {
            map.append(STREAM_PROTOCOL, p.parse().unwrap());
        });
        choose(&map, purpose)
    }

    fn by_websocket(protocols: &str, purpose: Purpose) -> Result<Chosen, Refused> {
        let mut map = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        map.extend(headers(&[("sec-websocket-version", "13"), ("sec-websocket-key", "x")]));
        if !protocols.is_empty() {
            map.extend(headers(&[("sec-websocket-protocol", protocols)]));
        }
        choose(&map, purpose)
    }

    #[test]
    fn the_first_protocol_of_the_client_that_is_known_is_taken() {
        use Purpose::{Command, PortForward};
        let spdy = |protocols, purpose| by_spdy(protocols, purpose).unwrap().carrier;
        assert_eq!(
            spdy(&["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"], Command),
            Carrier::Spdy(Version::V4)
        );
        assert_eq!(spdy(&["v9.channel.k8s.io, v2.channel.k8s.io"], Command), Carrier::Spdy(Version::V2));
        assert_eq!(spdy(&[], Command), Carrier::Spdy(Version::V1));
        assert_eq!(spdy(&["portforward.k8s.io"], PortForward), Carrier::Spdy(Version::V1));
        let web = |protocols, purpose| by_websocket(protocols, purpose).unwrap().carrier;
        let v5 = Carrier::Channels(Form { base64: false, closes: true }, Version::V5);
        assert_eq!(web("v5.channel.k8s.io", Command), v5);
        let text = Carrier::Channels(Form { base64: true, closes: false }, Version::V4);
        assert_eq!(web("x, v4.base64.channel.k8s.io", Command), text);
        assert_eq!(web("SPDY/3.1+portforward.k8s.io", PortForward), Carrier::Tunnel);
        let old = Carrier::Channels(Form { base64: false, closes: false }, Version::V1);
        assert_eq!(web("", Command), old);
    }

    #[test]
    fn what_is_not_spoken_is_refused_with_what_is() {
        let Err(Refused::NoProtocol(spoken)) = by_spdy(&["v9.channel.k8s.io"], Purpose::Command) else { panic!() };
        assert_eq!(spoken[0], "v4.channel.k8s.io");
        assert!(matches!(by_websocket("chat", Purpose::PortForward), Err(Refused::NoProtocol(_))));
        assert!(matches!(by_websocket("SPDY/3.1+portforward.k8s.io", Purpose::Command), Err(Refused::NoProtocol(_))));
        assert_eq!(choose(&HeaderMap::new(), Purpose::Command), Err(Refused::NoUpgrade));
        let no_key = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]);
        assert!(matches!(choose(&no_key, Purpose::Command), Err(Refused::BadWebSocket(_))));
    }
}
