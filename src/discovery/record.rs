//! A record in a store of keys and values: what a service has written there of itself, in the forms that the field's libraries use.
//!
//! | | |
//! |---|---|
//! | a text | `10.0.0.1:9001` or a URL, in the value or as the last part of the key |
//! | gRPC's naming in etcd | `{"Op": 0, "Addr": "10.0.0.1:9001", "Metadata": ..}` |
//! | Go Micro | `{"name": "users", "version": .., "nodes": [{"id": .., "address": "10.0.0.1:9001", "metadata": {..}}]}` |
//! | Curator, Spring Cloud, Dubbo's applications | `{"id": .., "address": "10.0.0.1", "port": 9001, "payload": {"metadata": {..}}}` |
//! | Dubbo's interfaces | `tri%3A%2F%2F10.0.0.1%3A9001%2Fcom.example.Users%3Fweight%3D200`, as the last part of the key |
//! | isobar's own | `{"address": "10.0.0.1:9001", "weight": 3, ..}`, an entry of a file |
//!
//! Metadata are labels. One that is too long to be shown is left out, for libraries write what they like there; `weight` is the weight.

use serde_json::{Map, Value};

use crate::backend::Instance;
use crate::backend::document::{self, label};
use crate::config::Address;

/// The backends that a record is. `name` is the last part of its key. None where the record says that it is out of service.
pub(super) fn read(name: &str, value: &[u8], zone_label: &str) -> Result<Vec<Instance>, String> {
    let text = std::str::from_utf8(value).map_err(|_| "it is not UTF-8")?.trim();
    let mut instances = match serde_json::from_str(text) {
        Ok(Value::Object(table)) => of_table(table)?,
        Ok(Value::String(text)) => of_text(&text)?,
        // Libraries that keep the address in the key have anything in the value.
        _ => of_text(text).or_else(|what| of_text(name).map_err(|_| what))?,
    };
    for instance in &mut instances {
        if let Some(weight) = instance.labels.get("weight").and_then(|it| it.parse().ok()) {
            instance.weight = weight;
        }
        let zone = instance.labels.get(zone_label).cloned();
        instance.place.zone = instance.place.zone.take().or(zone);
    }
    Ok(instances)
}

/// An address, or a URL, whose query is metadata as Dubbo has it.
fn of_text(text: &str) -> Result<Vec<Instance>, String> {
    let decoded = (!text.contains("://")).then(|| decoded(text)).filter(|decoded| decoded.contains("://"));
    let text = decoded.as_deref().unwrap_or(text);
    let mut instance = Instance::new(address(text)?);
    let query = text.split_once("://").and_then(|(_, rest)| rest.split_once('?')).map_or("", |(_, query)| query);
    let mut is_in_service = true;
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        is_in_service &= !matches!((name, value), ("disabled", "true") | ("enabled", "false"));
        let _ = label(&mut instance, name, &decoded_or(value));
    }
    Ok(if is_in_service { vec![instance] } else { Vec::new() })
}

fn decoded_or(text: &str) -> String {
    if text.contains('%') { decoded(text) } else { text.to_owned() }
}

/// A text of a URL, without its escapes.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = || {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            digits.bytes().all(|it| it.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok())?
        };
        match escaped().filter(|_| byte == b'%') {
            Some(escaped) => {
                bytes.push(escaped);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn of_table(mut table: Map<String, Value>) -> Result<Vec<Instance>, String> {
    if let Some(Value::Array(nodes)) = table.get("nodes") {
        return nodes.iter().map(|node| of_node(node, &table)).collect();
    }
    if let Some(Value::String(text)) = table.get("Addr") {
        // 1 is gRPC's word for a record that is to be deleted.
        if table.get("Op").and_then(Value::as_u64) == Some(1) {
            return Ok(Vec::new());
        }
        let mut instance = Instance::new(address(text)?);
        add(&mut instance, table.get("Metadata"));
        return Ok(vec![instance]);
    }
    if table.contains_key("address") && table.contains_key("port") {
        return of_curator(&table);
    }
    if table.contains_key("address") {
        // Its own form is strict, but for what others write beside it.
        table.remove("id");
        return document::instance(Value::Object(table)).map(|instance| vec![instance]);
    }
    Err("it has no address in a form that is known".into())
}

/// An instance of a service as Curator writes it. Spring Cloud and Dubbo have their metadata in its payload.
fn of_curator(table: &Map<String, Value>) -> Result<Vec<Instance>, String> {
    let payload = table.get("payload");
    let metadata = payload.and_then(|payload| payload.get("metadata")).or(payload);
    let status = metadata.and_then(|it| it.get("instance_status")).and_then(Value::as_str);
    let is_enabled = table.get("enabled").and_then(Value::as_bool).unwrap_or(true);
    if !is_enabled || status.is_some_and(|status| !status.eq_ignore_ascii_case("UP")) {
        return Ok(Vec::new());
    }
    let port = |key: &str| table.get(key).and_then(Value::as_u64).filter(|&port| port > 0);
    let port = port("port").or_else(|| port("sslPort")).ok_or("it has no port")?;
    let host = table.get("address").and_then(Value::as_str).ok_or("it has no address")?;
    let mut instance = Instance::new(host_and_port(host, port)?);
    add(&mut instance, metadata);
    if let Some(id) = table.get("id").and_then(Value::as_str) {
        let _ = label(&mut instance, "id", id);
    }
    Ok(vec![instance])
}

/// A node of Go Micro's. Early versions have the port beside the address.
fn of_node(node: &Value, service: &Map<String, Value>) -> Result<Instance, String> {
    let Some(text) = node.get("address").and_then(Value::as_str) else { return Err("a node has no address".into()) };
    let found = match node.get("port").and_then(Value::as_u64).filter(|&port| port > 0) {
        Some(port) => host_and_port(text, port)?,
        None => address(text)?,
    };
    let mut instance = Instance::new(found);
    add(&mut instance, node.get("metadata"));
    for (name, value) in [("id", node.get("id")), ("version", service.get("version"))] {
        if let Some(value) = value.and_then(Value::as_str) {
            let _ = label(&mut instance, name, value);
        }
    }
    Ok(instance)
}

/// Adds metadata as labels, as far as they can be.
fn add(instance: &mut Instance, metadata: Option<&Value>) {
    let Some(Value::Object(metadata)) = metadata else { return };
    for (name, value) in metadata {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        let _ = label(instance, name, &text);
    }
}

fn host_and_port(host: &str, port: u64) -> Result<Address, String> {
    let text = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    address(&text)
}

/// An address with a port, or that of a URL.
fn address(text: &str) -> Result<Address, String> {
    let of_url = text.split_once("://").map(|(scheme, rest)| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        match (authority.parse(), scheme) {
            (Ok(address), _) => Ok(address),
            (Err(_), "http") => format!("{authority}:80").parse(),
            (Err(_), "https") => format!("{authority}:443").parse(),
            (Err(error), _) => Err(error),
        }
    });
    let shown: String = text.chars().take(60).collect();
    of_url.unwrap_or_else(|| text.parse()).map_err(|_| format!("{shown:?} is not an address with a port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Result<Vec<Instance>, String> {
        read("key", value.as_bytes(), "zone")
    }

    fn one(value: &str) -> Instance {
        let [instance] = <[Instance; 1]>::try_from(of(value).unwrap()).unwrap();
        instance
    }

    #[test]
    fn each_form_is_read() {
        for value in [
            "10.0.0.1:9001",
            " 10.0.0.1:9001\n",
            "\"10.0.0.1:9001\"",
            "http://10.0.0.1:9001/users?a=b",
            "grpc://10.0.0.1:9001",
            r#"{"Op":0,"Addr":"10.0.0.1:9001","Metadata":null}"#,
            r#"{"Addr":"10.0.0.1:9001","Metadata":"text"}"#,
            r#"{"address":"10.0.0.1:9001"}"#,
            r#"{"name":"users","nodes":[{"id":"users-1","address":"10.0.0.1","port":9001}]}"#,
        ] {
            assert_eq!(one(value).address.to_string(), "10.0.0.1:9001", "{value}");
        }
        assert_eq!(one("https://users.internal/").address.to_string(), "users.internal:443");
        let by_key = |value: &[u8]| read("10.0.0.1:9001", value, "zone").unwrap()[0].address.to_string();
        for value in [&b""[..], b"10.0.0.1", b"5"] {
            assert_eq!(by_key(value), "10.0.0.1:9001");
        }
    }

    #[test]
    fn metadata_are_labels_with_weight_and_zone() {
        let micro = r#"{"name":"users","version":"latest","metadata":null,"endpoints":[{"name":"Users.Get"}],
            "nodes":[{"id":"users-1","address":"10.0.0.1:9001","metadata":{"zone":"a","weight":"7","server":"http"}},
                     {"id":"users-2","address":"10.0.0.2:9001","metadata":{}}]}"#;
        let nodes = of(micro).unwrap();
        assert_eq!((nodes.len(), nodes[0].weight, nodes[0].place.zone.as_deref()), (2, 7, Some("a")));
        assert_eq!((&*nodes[0].labels["version"], &*nodes[1].labels["id"]), ("latest", "users-2"));
        let long = "x".repeat(5000);
        let grpc =
            one(&format!(r#"{{"Addr":"10.0.0.1:1","Metadata":{{"long":"{long}","weight":3,"deep":{{}},"ok":true}}}}"#));
        assert_eq!((grpc.weight, grpc.labels.len(), &*grpc.labels["ok"]), (3, 2, "true"));
    }

    #[test]
    fn curator_and_dubbo_are_read_with_what_takes_them_out_of_service() {
        let spring = |status: &str, more: &str| {
            format!(
                r#"{{"name":"u","id":"1","address":"10.0.0.1","port":9001,"sslPort":null,{more}"payload":{{"@class":"Z","id":"u",
                   "metadata":{{"instance_status":"{status}","zone":"a","weight":"3"}}}},"serviceType":"DYNAMIC"}}"#
            )
        };
        let up = one(&spring("UP", ""));
        assert_eq!(
            (up.address.to_string(), up.weight, up.place.zone.as_deref()),
            ("10.0.0.1:9001".into(), 3, Some("a"))
        );
        assert_eq!(of(&spring("OUT_OF_SERVICE", "")), Ok(vec![]));
        assert_eq!(of(&spring("UP", r#""enabled":false,"#)), Ok(vec![]));
        assert_eq!(
            one(r#"{"address":"2001:db8::1","port":null,"sslPort":8443}"#).address.to_string(),
            "[2001:db8::1]:8443"
        );
        assert_eq!(of(r#"{"address":"10.0.0.1","port":null}"#).unwrap_err(), "it has no port");
        let dubbo = |query: &str| {
            let name = format!("dubbo%3A%2F%2F10.0.0.1%3A20880%2Fcom.example.Users%3F{query}");
            read(&name, b"10.0.0.9", "zone").unwrap()
        };
        let found = dubbo("application%3Ddemo%26weight%3D200%26side%3Dprovider");
        assert_eq!((found[0].address.to_string(), found[0].weight), ("10.0.0.1:20880".into(), 200));
        assert_eq!(&*found[0].labels["application"], "demo");
        assert_eq!(dubbo("disabled%3Dtrue"), []);
        assert_eq!(decoded("%zz%4"), "%zz%4");
    }

    #[test]
    fn what_is_no_record_is_told_and_one_to_be_deleted_is_none() {
        assert_eq!(of(r#"{"Op":1,"Addr":"10.0.0.1:9001"}"#), Ok(vec![]));
        for (value, what) in [
            ("", "\"\" is not an address with a port"),
            ("10.0.0.1", "\"10.0.0.1\" is not an address with a port"),
            ("{}", "it has no address in a form that is known"),
            (r#"{"nodes":[{}]}"#, "a node has no address"),
            (r#"{"address":"10.0.0.1:1","wieght":2}"#, "10.0.0.1:1: unknown key \"wieght\"; did you mean \"weight\"?"),
            (r#"{"Addr":"nowhere"}"#, "\"nowhere\" is not an address with a port"),
        ] {
            assert_eq!(of(value).unwrap_err(), what, "{value}");
        }
        assert_eq!(read("key", b"\xff", "zone").unwrap_err(), "it is not UTF-8");
    }
}
