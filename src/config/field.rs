//! The parts of the raw configuration: a value with its place, and a table whose keys the user chooses.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::report::Place;
use super::visibility::{OfKind, Word};

/// What a key holds. Reading one never fails: what is wrong with it is reported, and the rest of the file is read on.
#[derive(Debug, Default)]
pub(crate) enum Field<T> {
    /// The file does not have it.
    #[default]
    Absent,
    /// Of the wrong type, which is reported already.
    Wrong(Place),
    /// As the file has it.
    Given(Place, T),
}

impl<T> Field<T> {
    /// The value and its place.
    pub(crate) fn given(&self) -> Option<(Place, &T)> {
        match self {
            Self::Given(place, value) => Some((*place, value)),
            Self::Absent | Self::Wrong(_) => None,
        }
    }

    /// The value.
    pub(crate) fn value(&self) -> Option<&T> {
        self.given().map(|(_, value)| value)
    }

    /// Where it is, right or wrong.
    pub(crate) fn place(&self) -> Option<Place> {
        match self {
            Self::Absent => None,
            Self::Wrong(place) | Self::Given(place, _) => Some(*place),
        }
    }
}

impl<T> Field<Vec<Field<T>>> {
    /// The members that could be read, with their places.
    pub(crate) fn members(&self) -> impl Iterator<Item = (Place, &T)> {
        self.value().into_iter().flatten().filter_map(Field::given)
    }
}

impl<'de, T: Deserialize<'de> + OfKind> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldVisitor<T> {
            type Value = Field<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a place and a value")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Field<T>, A::Error> {
                let place = parts.next_element::<usize>()?.map_or(Place::FILE, Place);
                Ok(match parts.next_element()? {
                    Some(value) => Field::Given(place, value),
                    None => Field::Wrong(place),
                })
            }
        }

        deserializer.deserialize_tuple_struct(T::KIND.marker(), 2, FieldVisitor(PhantomData))
    }
}

/// A table whose keys the user chooses, in the order of the file.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) Vec<NamedEntry<T>>);

/// A key and what it holds.
#[derive(Debug)]
pub(crate) struct NamedEntry<T> {
    /// The key.
    pub(crate) name: String,
    /// Where the key is.
    pub(crate) place: Place,
    /// What it holds.
    pub(crate) value: Field<T>,
}

impl<T> Field<Named<T>> {
    /// The entries, with those whose value could not be read.
    pub(crate) fn entries(&self) -> &[NamedEntry<T>] {
        self.value().map_or(&[], |named| &named.0)
    }
}

impl<'de, T: Deserialize<'de> + OfKind> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamedVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + OfKind> Visitor<'de> for NamedVisitor<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Field<Word>>()? {
                    match key {
                        Field::Given(place, name) => {
                            entries.push(NamedEntry { name: name.to_string(), place, value: map.next_value()? });
                        }
                        Field::Absent | Field::Wrong(_) => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Named(entries))
            }
        }

        deserializer.deserialize_map(NamedVisitor(PhantomData))
    }
}
