//! Every key that the file can have, and what of its value may be shown.
//!
//! Asked of the types of the tables as they are read, so that there is no second list of keys. A key is named as in
//! `route[].headers.*.regex`: `[]` is any member of an array, `*` any key that the user chooses.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::raw;
use super::visibility::Kind;

/// What of a key's value may be shown; `None` where there is no such key.
pub fn kind(key: &str) -> Option<Kind> {
    all().get(key).copied()
}

/// All of them with their kinds, members of arrays too.
pub fn all() -> &'static BTreeMap<String, Kind> {
    static ALL: LazyLock<BTreeMap<String, Kind>> = LazyLock::new(walk);
    &ALL
}

fn walk() -> BTreeMap<String, Kind> {
    let mut kinds = BTreeMap::new();
    let file = raw::File::deserialize(Walk { path: String::new(), kinds: &mut kinds });
    debug_assert!(file.is_ok(), "{file:?}");
    kinds
}

/// The name of a key within a table.
pub fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// Gives a type every key it asks for, and notes them: a file that has everything.
struct Walk<'k> {
    path: String,
    kinds: &'k mut BTreeMap<String, Kind>,
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str("")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(true)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(1)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_f64(1.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let path = format!("{}[]", self.path);
        visitor.visit_seq(KeyParts { place: None, value: Some(Walk { path, ..self }) })
    }

    /// A field, whose marker tells its kind.
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        marker: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let kind = Kind::marked(marker).ok_or_else(|| Error::custom("not a field"))?;
        self.kinds.insert(self.path.clone(), kind);
        visitor.visit_seq(KeyParts { place: Some(0), value: Some(self) })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Keys { keys: &["*"], walk: self })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Keys { keys: fields, walk: self })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        // The last: where there is a table, it is the one with keys.
        let variant = variants.last().ok_or_else(|| Error::custom("an enum without variants"))?;
        visitor.visit_enum(Variant(variant, self))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 char str string bytes byte_buf option unit unit_struct tuple
        identifier ignored_any
    }
}

struct KeyParts<'k> {
    place: Option<usize>,
    value: Option<Walk<'k>>,
}

impl<'de> de::SeqAccess<'de> for KeyParts<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if let Some(place) = self.place.take() {
            return seed.deserialize(place.into_deserializer()).map(Some);
        }
        self.value.take().map(|value| seed.deserialize(value)).transpose()
    }
}

struct Keys<'k> {
    keys: &'static [&'static str],
    walk: Walk<'k>,
}

impl<'de> de::MapAccess<'de> for Keys<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(key) = self.keys.first() else { return Ok(None) };
        seed.deserialize(KeyName(key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let Some((key, others)) = self.keys.split_first() else { return Err(Error::custom("a value before its key")) };
        self.keys = others;
        seed.deserialize(Walk { path: join(&self.walk.path, key), kinds: self.walk.kinds })
    }
}

/// A key: a text, or a field with one.
struct KeyName(&'static str);

impl<'de> Deserializer<'de> for KeyName {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.0)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(NameParts { place: Some(0), name: Some(self) })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple map struct enum identifier ignored_any
    }
}

struct NameParts {
    place: Option<usize>,
    name: Option<KeyName>,
}

impl<'de> de::SeqAccess<'de> for NameParts {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if let Some(place) = self.place.take() {
            return seed.deserialize(place.into_deserializer()).map(Some);
        }
        self.name.take().map(|name| seed.deserialize(name)).transpose()
    }
}

struct Variant<'k>(&'static str, Walk<'k>);

impl<'de, 'k> de::EnumAccess<'de> for Variant<'k> {
    type Error = Error;
    type Variant = Walk<'k>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Walk<'k>), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self.1))
    }
}

impl<'de> de::VariantAccess<'de> for Walk<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use toml::{Table, Value};

    use super::*;

    #[test]
    fn the_file_of_tests_has_every_key_that_may_hold_a_secret() {
        let known = all();
        assert!(
            known.contains_key("upstream.*.backends[].weight") && known.contains_key("route[].headers.*.regex"),
            "{known:?}"
        );

        let reference = include_str!("../../tests/config/every_key.toml");
        let is_key = |line: &str| line.starts_with('[') || line.split(' ').nth(1) == Some("=");
        let lines = reference.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line));
        let table: Table = lines.collect::<Vec<_>>().join("\n").parse().unwrap();
        let mut shown = BTreeSet::new();
        collect("", &Value::Table(table), &mut shown);

        // A route may have each of the upstream's keys, which are explained there.
        let explained = |key: &str| {
            let of_upstream = key.strip_prefix("route[].retries.").map(|key| format!("upstream.*.retries.{key}"));
            // The kinds of an embedding program are not known here.
            key == "middleware.*.*" || of_upstream.is_some_and(|key| shown.contains(&key))
        };
        // A plain key has nothing to hide.
        let keys = known.iter().filter(|(key, kind)| **kind != Kind::Plain && !key.ends_with("[]")).map(|(key, _)| key);
        let missing: Vec<_> = keys.filter(|key| !shown.contains(*key) && !explained(key)).collect();
        assert!(missing.is_empty(), "not in tests/config/every_key.toml: {missing:?}");
    }

    /// The keys of a value, named as [`Walk`] names them.
    fn collect(path: &str, value: &Value, shown: &mut BTreeSet<String>) {
        match value {
            Value::Array(members) => members.iter().for_each(|member| collect(&format!("{path}[]"), member, shown)),
            Value::Table(table) => {
                for (key, value) in table {
                    let named = join(path, key);
                    let path = if kind(&named).is_some() { named } else { join(path, "*") };
                    collect(&path, value, shown);
                    shown.insert(path);
                }
            }
            _ => {}
        }
    }

    /// Each key whose kind is decided by what it is for. A new one has to be added here, and one that is not plain in
    /// `tests/config/secrets.rs` too.
    #[test]
    fn keys_that_are_not_plain() {
        let named = |wanted: Kind| -> Vec<&str> {
            all().iter().filter(|(_, kind)| **kind == wanted).map(|(key, _)| key.as_str()).collect()
        };
        assert_eq!(
            named(Kind::Secret),
            [
                "admin.token",
                "registry.token[].token",
                "upstream.*.discovery[].consul.token",
                "upstream.*.discovery[].etcd.password",
                "upstream.*.discovery[].eureka.password",
                "upstream.*.discovery[].http.token",
                "upstream.*.discovery[].nacos.password",
                "upstream.*.discovery[].push.token",
                "upstream.*.discovery[].zookeeper.password",
            ]
        );
        assert_eq!(
            named(Kind::Sensitive),
            [
                "middleware.*.headers.request.add.*",
                "middleware.*.headers.request.set.*",
                "middleware.*.headers.response.add.*",
                "middleware.*.headers.response.set.*",
                "route[].headers.*",
                "route[].headers.*.regex",
                "route[].query.*",
                "route[].query.*.regex",
                "route[].request_headers.add.*",
                "route[].request_headers.set.*",
                "route[].respond.body",
                "route[].response_headers.add.*",
                "route[].response_headers.set.*",
                "upstream.*.health_check.body",
                "upstream.*.health_check.headers.*",
            ]
        );
    }
}
