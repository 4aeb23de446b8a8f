//! What plug-ins answer to ADD: any version's form made one, that of version 1.0.0.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::conf::Version;

/// Understands an answer. The result has `cniVersion`, `interfaces`, `ips`, `routes` and `dns`.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(answer: &[u8]) -> Result<Map<String, Value>, String> {
    let start = String::from_utf8_lossy(&answer[..answer.len().min(100)]).into_owned();
    let value = serde_json::from_slice(answer).map_err(|e| format!("its answer is not JSON ({e}): {start:?}"))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(format!("its answer is no JSON object: {start:?}")),
    }
}

/// The form of version 1.0.0.
pub(super) fn normalise(mut result: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let old: Vec<Value> = ["ip4", "ip6"].iter().filter_map(|key| result.remove(*key)).collect();
    if !old.is_empty() {
        from_oldest(&mut result, &old);
    }
    let ips = result.entry("ips").or_insert_with(|| json!([]));
    let Value::Array(ips) = ips else { return Err(format!("ips {ips} is no list")) };
    for ip in ips {
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        address(text).ok_or_else(|| format!("ips: {ip} has no address like 192.0.2.1/24"))?;
        ip.as_object_mut().map(|object| object.remove("version"));
    }
    let interfaces = result.entry("interfaces").or_insert_with(|| json!([]));
    if !interfaces.is_array() {
        return Err(format!("interfaces {interfaces} is no list"));
    }
    result.insert("cniVersion".into(), Version::ONE.to_string().into());
    Ok(result)
}

/// Versions 0.1.0 and 0.2.0 had one address of each family.
fn from_oldest(result: &mut Map<String, Value>, old: &[Value]) {
    let ips = old.iter().map(|ip| json!({"address": ip.get("ip"), "gateway": ip.get("gateway")}));
    let routes = old.iter().filter_map(|ip| ip.get("routes")?.as_array()).flatten().cloned();
    let (ips, routes): (Vec<Value>, Vec<Value>) = (ips.collect(), routes.collect());
    result.insert("ips".into(), ips.into());
    result.insert("routes".into(), routes.into());
}

/// The addresses that the pod has on an interface, in the answer's order. An address that names no interface counts
/// for the one that was asked for.
///
/// # Errors
/// An address names an interface that is not in the list.
pub(super) fn addresses(result: &Map<String, Value>, interface: &str) -> Result<Vec<IpAddr>, String> {
    let list = |key| result.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let interfaces = list("interfaces");
    let mut found = Vec::new();
    for ip in list("ips") {
        let on = match ip.get("interface").and_then(Value::as_i64) {
            None => interface,
            Some(index) => {
                let named = usize::try_from(index).ok().and_then(|i| interfaces.get(i));
                let named = named.ok_or_else(|| format!("ips: there is no interface {index}"))?;
                named.get("name").and_then(Value::as_str).unwrap_or_default()
            }
        };
        let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        if let Some(address) = address(text).filter(|_| on == interface) {
            found.push(address);
        }
    }
    Ok(found)
}

fn address(text: &str) -> Option<IpAddr> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    prefix.parse::<u8>().ok().filter(|p| *p <= bits).map(|_| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> Result<Map<String, Value>, String> {
        parse(text.as_bytes()).and_then(normalise)
    }

    #[test]
    fn results_of_all_versions_become_one_form() {
        for text in [
            r#"{"cniVersion":"0.2.0","ip4":{"ip":"192.0.2.5/24","gateway":"192.0.2.1"},"ip6":{"ip":"fd00::5/64"}}"#,
            r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"192.0.2.5/24"},{"version":"6","address":"fd00::5/64"}]}"#,
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"v"},{"name":"eth0","sandbox":"/n"}],
                "ips":[{"address":"192.0.2.5/24","interface":1},{"address":"10.0.0.1/8","interface":0},{"address":"fd00::5/64"}]}"#,
        ] {
            let result = normal(text).unwrap();
            assert_eq!(result["cniVersion"], "1.0.0");
            let found: Vec<String> = addresses(&result, "eth0").unwrap().iter().map(IpAddr::to_string).collect();
            assert_eq!(found, ["192.0.2.5", "fd00::5"], "{text}");
        }
    }

    #[test]
    fn rubbish_is_named() {
        for (text, why) in [
            ("", "not JSON"),
            ("hello", "\"hello\""),
            ("[1]", "no JSON object"),
            (r#"{"ips":3}"#, "ips 3 is no list"),
            (r#"{"ips":[{"address":"x"}]}"#, "has no address"),
            (r#"{"ips":[{"address":"192.0.2.1/33"}]}"#, "has no address"),
            (r#"{"interfaces":"eth0"}"#, "no list"),
        ] {
            let error = normal(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let result = normal(r#"{"ips":[{"address":"192.0.2.1/24","interface":7}]}"#).unwrap();
        assert!(addresses(&result, "eth0").unwrap_err().contains("no interface 7"));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(text in r#"\{("(ips|interfaces|ip4|routes)":(\[|\{|3|"x"|,|\]|\}){1,8},?){0,4}\}"#) {
            if let Ok(result) = normal(&text) {
                let _ = addresses(&result, "eth0");
            }
        }
    }
}
