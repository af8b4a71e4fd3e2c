//! What a value is made of, given to serde one by one: the parts of a field, the members of an array, the keys and values of a table, the
//! choice of an enum.

use std::slice;

use serde::de::value::{StrDeserializer, UsizeDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::DeValue;

use super::{GivenUp, TableEntry, ValueReader, join};
use crate::config::report::{Place, Report};

/// The parts of a [`Field`](super::field::Field). A value that is given up ends the parts early: the field is then wrong, and the rest goes on.
pub(super) struct FieldParts<'a, D> {
    pub(super) place: Option<Place>,
    pub(super) value: Option<D>,
    pub(super) report: &'a Report<'a>,
    pub(super) at: Place,
}

impl<'a, D: Deserializer<'a, Error = GivenUp>> de::SeqAccess<'a> for FieldParts<'a, D> {
    type Error = GivenUp;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, GivenUp> {
        if let Some(Place(index)) = self.place.take() {
            let index: UsizeDeserializer<GivenUp> = index.into_deserializer();
            return seed.deserialize(index).map(Some);
        }
        let Some(value) = self.value.take() else { return Ok(None) };
        seed.deserialize(value).map(Some).or_else(|given_up| {
            given_up.report(self.report, self.at);
            Ok(None)
        })
    }
}

/// The members of an array.
pub(super) struct Members<'a> {
    pub(super) members: slice::Iter<'a, Spanned<DeValue<'a>>>,
    pub(super) index: usize,
    pub(super) array: ValueReader<'a>,
}

impl<'a> de::SeqAccess<'a> for Members<'a> {
    type Error = GivenUp;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, GivenUp> {
        let Some(member) = self.members.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.array.path, self.index);
        self.index += 1;
        seed.deserialize(self.array.inner(path, member)).map(Some)
    }
}

/// The entries of a table.
pub(super) struct TableEntries<'a> {
    pub(super) entries: std::vec::IntoIter<TableEntry<'a>>,
    pub(super) value: Option<ValueReader<'a>>,
    pub(super) table: ValueReader<'a>,
}

impl<'a> de::MapAccess<'a> for TableEntries<'a> {
    type Error = GivenUp;

    fn next_key_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, GivenUp> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let path = join(&self.table.path, key.get_ref());
        let place = self.table.report.place(&path, key.span().start);
        self.value = Some(self.table.inner(path, value));
        seed.deserialize(KeyReader { name: key.get_ref(), place, report: self.table.report }).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, GivenUp> {
        match self.value.take() {
            Some(value) => seed.deserialize(value),
            None => Err(GivenUp::Because("a value was read before its key".into())),
        }
    }
}

/// A key: a text, or a [`Field`](super::field::Field) with one.
pub(super) struct KeyReader<'a> {
    name: &'a str,
    place: Place,
    report: &'a Report<'a>,
}

impl<'a> Deserializer<'a> for KeyReader<'a> {
    type Error = GivenUp;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        visitor.visit_borrowed_str(self.name)
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, GivenUp> {
        let name: StrDeserializer<'a, GivenUp> = self.name.into_deserializer();
        visitor.visit_seq(FieldParts {
            place: Some(self.place),
            value: Some(name),
            report: self.report,
            at: self.place,
        })
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple map struct enum identifier ignored_any
    }
}

/// An enum's variant, chosen by the type of the value.
pub(super) struct Shaped<'a> {
    pub(super) variant: &'static str,
    pub(super) reader: ValueReader<'a>,
}

impl<'a> de::EnumAccess<'a> for Shaped<'a> {
    type Error = GivenUp;
    type Variant = ValueReader<'a>;

    fn variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<(S::Value, ValueReader<'a>), GivenUp> {
        let variant: StrDeserializer<'a, GivenUp> = self.variant.into_deserializer();
        Ok((seed.deserialize(variant)?, self.reader))
    }
}

impl<'a> de::VariantAccess<'a> for ValueReader<'a> {
    type Error = GivenUp;

    fn unit_variant(self) -> Result<(), GivenUp> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<S::Value, GivenUp> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, GivenUp> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'a>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, GivenUp> {
        self.deserialize_struct("", fields, visitor)
    }
}
