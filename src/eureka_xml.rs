//! XML as Eureka's servers and clients write it, as a value of JSON, so that each of them has one form for both.
//!
//! An element is an object of what is in it: children by their names, attributes with `@` before theirs, and a text beside attributes
//! as `$`. An element with a text alone is that text, and of several elements with one name a list is made. Document types, and with them
//! entities of a document's own, are refused.

use std::fmt::Write;

use quick_xml::Reader;
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use serde_json::{Map, Value};

/// Elements within elements. Eureka has six.
const DEPTH_MAX: usize = 16;

/// Reads a document: an object with its element.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let mut reader = Reader::from_str(text);
    // The document, and the elements that are open.
    let mut open = vec![(String::new(), Map::new())];
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(start) => {
                if open.len() > DEPTH_MAX {
                    return Err(format!("elements stand in more than {DEPTH_MAX} others"));
                }
                open.push(element(&start)?);
            }
            Event::Empty(start) => {
                let (name, object) = element(&start)?;
                close(&mut open, name, object);
            }
            Event::End(_) => {
                // The reader has seen that it is the one that was opened.
                let Some((name, object)) = open.pop().filter(|_| !open.is_empty()) else {
                    return Err("an element ends that has not begun".into());
                };
                close(&mut open, name, object);
            }
            Event::Text(piece) => add_text(&mut open, &piece),
            Event::CData(piece) => add_text(&mut open, &piece),
            Event::GeneralRef(reference) => {
                let character = match reference.resolve_char_ref().map_err(|error| error.to_string())? {
                    Some(character) => character.to_string(),
                    None => match &*reference {
                        "lt" => "<".into(),
                        "gt" => ">".into(),
                        "amp" => "&".into(),
                        "apos" => "'".into(),
                        "quot" => "\"".into(),
                        other => return Err(format!("there is no entity {other:?}")),
                    },
                };
                add_text(&mut open, &character);
            }
            Event::DocType(_) => return Err("it has a document type".into()),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            Event::Eof => break,
        }
    }
    match open.pop() {
        Some((_, mut root)) if open.is_empty() => {
            // White space around its element.
            root.remove("$");
            Ok(Value::Object(root))
        }
        _ => Err("it ends within an element".into()),
    }
}

fn element(start: &BytesStart<'_>) -> Result<(String, Map<String, Value>), String> {
    let name = start.local_name().as_ref().to_owned();
    let mut object = Map::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let key = attribute.key.local_name();
        let value = unescape(&attribute.value).map_err(|error| error.to_string())?.into_owned();
        object.insert(format!("@{}", key.as_ref()), value.into());
    }
    Ok((name, object))
}

fn add_text(open: &mut [(String, Map<String, Value>)], piece: &str) {
    let Some((_, object)) = open.last_mut() else { return };
    match object.get_mut("$") {
        Some(Value::String(text)) => text.push_str(piece),
        _ => drop(object.insert("$".into(), piece.into())),
    }
}

/// Puts an element that has ended into the one around it: as a text if it is nothing else, as a list with those of the same name.
fn close(open: &mut [(String, Map<String, Value>)], name: String, mut object: Map<String, Value>) {
    let Some((_, parent)) = open.last_mut() else { return };
    let text = object.remove("$").and_then(|text| text.as_str().map(|text| text.trim().to_owned()));
    let value = match text {
        Some(text) if object.is_empty() => text.into(),
        None if object.is_empty() => "".into(),
        text => {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                object.insert("$".into(), text.into());
            }
            Value::Object(object)
        }
    };
    match parent.get_mut(&name) {
        Some(Value::Array(list)) => list.push(value),
        Some(other) => {
            let first = other.take();
            *other = Value::Array(vec![first, value]);
        }
        None => drop(parent.insert(name, value)),
    }
}

/// Writes an element of that name.
pub(crate) fn written(name: &str, value: &Value) -> String {
    let mut text = String::new();
    write_element(&mut text, name, value);
    text
}
fn write_element(text: &mut String, name: &str, value: &Value) {
    // One word is written otherwise in XML than in JSON.
    let name = if name == "overriddenStatus" { "overriddenstatus" } else { name };
    let name = &name_of(name);
    match value {
        Value::Array(all) => all.iter().for_each(|value| write_element(text, name, value)),
        Value::Object(fields) => {
            let _ = write!(text, "<{name}");
            for (key, value) in fields.iter().filter_map(|(key, value)| Some((key.strip_prefix('@')?, value))) {
                let _ = write!(text, " {}=\"{}\"", name_of(key), escaped(&plain(value)));
            }
            text.push('>');
            for (key, value) in fields.iter().filter(|(key, _)| !key.starts_with('@')) {
                match key.as_str() {
                    "$" => *text += &escaped(&plain(value)),
                    key => write_element(text, key, value),
                }
            }
            let _ = write!(text, "</{name}>");
        }
        value => {
            let _ = write!(text, "<{name}>{}</{name}>", escaped(&plain(value)));
        }
    }
}

/// A name that is one in XML: metadata may be called anything.
fn name_of(name: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = name.chars().map(good).collect();
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins_well { name } else { format!("_{name}") }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        value => value.to_string(),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '&' => escaped += "&amp;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&apos;",
            // XML 1.0 has no way to write the others.
            c if c.is_control() && !"\n\r\t".contains(c) => {}
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_instance_is_read_as_its_json_would_be() {
        let text = r#"<?xml version="1.0"?>
            <!-- as Netflix's client writes it -->
            <instance>
              <hostName>a.example</hostName><app>USERS</app>
              <port enabled="true">8080</port><securePort enabled='false'>443</securePort>
              <dataCenterInfo class="com.netflix.appinfo.MyDataCenterInfo"><name>MyOwn</name></dataCenterInfo>
              <metadata class="a&amp;b"><zone>a &amp; b&#x41;</zone><text><![CDATA[<x>]]></text></metadata>
              <homePageUrl/><x>1</x><x>2</x>
            </instance>"#;
        let expected = json!({ "instance": {
            "hostName": "a.example", "app": "USERS",
            "port": { "$": "8080", "@enabled": "true" }, "securePort": { "$": "443", "@enabled": "false" },
            "dataCenterInfo": { "@class": "com.netflix.appinfo.MyDataCenterInfo", "name": "MyOwn" },
            "metadata": { "@class": "a&b", "zone": "a & bA", "text": "<x>" },
            "homePageUrl": "", "x": ["1", "2"],
        }});
        assert_eq!(read(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn what_is_no_xml_or_more_than_that_is_refused() {
        for text in [
            "<a>",
            "<a></b>",
            "</a>",
            "<a b></a>",
            "<a b=c></a>",
            "<a b=\"&c;\"></a>",
            "<a>&nbsp;</a>",
            "<a>&#xffffffff;</a>",
            "<a",
            "<a b=\"",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
            "<a><!DOCTYPE b></a>",
        ] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "<a>".repeat(10_000);
        assert!(read(deep.as_bytes()).is_err());
        assert!(read(b"<a>\xff</a>").is_err());
    }

    #[test]
    fn what_is_written_is_read_again() {
        let value = json!({
            "name": "a<b>&\"c'", "port": { "$": "1", "@enabled": "<\"&" }, "all": [{ "x": "1" }, { "x": "2" }],
        });
        let text = written("whole", &value);
        assert_eq!(read(text.as_bytes()), Ok(json!({ "whole": value })), "{text}");
        let odd = written("m", &json!({ "1 a/b": "x", "overriddenStatus": "UP", "n": 5, "gone": null }));
        assert_eq!(odd, "<m><_1_a_b>x</_1_a_b><gone></gone><n>5</n><overriddenstatus>UP</overriddenstatus></m>");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let text: String = bytes.iter().map(|byte| ['<', '>', '/', '"', '=', 'a', '&', ';', '!', '-', '[', ']'][*byte as usize % 12]).collect();
            let _ = read(text.as_bytes());
        }
    }
}
