//! Tables within tables.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{About, Form, FromLiteral, Inner, Literal, Many};
use crate::config::check::Check;
use crate::config::difference::Changes;
use crate::config::field::{Field, Named};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::schema;
use crate::config::table::Table;
use crate::config::visibility::Kind;

/// A table. As an `Option` it is none where the file does not have it, or says that it is off.
pub(crate) struct Part;

pub(crate) fn part_about<T: Table>() -> About {
    let inner = Inner { many: Many::One, doc: T::DOC, enabled: T::ENABLED, keys: T::keys(), rules: T::RULES };
    let schema = schema::of_table(&inner);
    About { inner: Some(inner), ..About::new::<T::Written>("a table", schema) }
}

impl<T: Table> Form<T> for Part
where
    T::Written: FromLiteral,
{
    type Written = T::Written;

    fn read(&self, check: &Check<'_>, place: Place, written: &T::Written) -> Option<T> {
        T::read(check, place, written)
    }

    fn read_over(&self, check: &Check<'_>, place: Place, written: &T::Written, before: Option<&T>) -> Option<T> {
        T::read_over(check, place, written, before)
    }

    fn absent(&self, check: &Check<'_>, _: Literal) -> T {
        T::by_default(check)
    }

    fn show(&self, value: &T) -> Option<Tree> {
        Some(value.tree())
    }

    /// By the first of its keys.
    fn tell(&self, value: &T) -> String {
        match value.entries().into_iter().next() {
            Some((_, Tree::Leaf(Value::String(text)))) => text,
            _ => String::new(),
        }
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &T, new: &T) {
        if T::ENABLED.is_some() && old.is_enabled() != new.is_enabled() {
            changes.switch(&format!("{table}{words}"), old.is_enabled(), new.is_enabled());
        } else {
            T::compare(changes, &format!("{table}{words}."), old, new);
        }
    }

    fn about(&self) -> About {
        part_about::<T>()
    }
}

/// Compares tables that may be off.
fn compare_switched<T: Table>(changes: &mut Changes, path: &str, old: Option<&T>, new: Option<&T>) {
    match (old, new) {
        (Some(old), Some(new)) => T::compare(changes, &format!("{path}."), old, new),
        (old, new) => changes.switch(path, old.is_some(), new.is_some()),
    }
}

/// As `/config` has it: one that is off has `enabled` and nothing else.
fn show_switched<T: Table>(value: Option<&T>) -> Option<Tree> {
    let off = || T::ENABLED.map(|_| Tree::Table(vec![("enabled".to_owned(), false.into())]));
    value.map(T::tree).or_else(off)
}

macro_rules! switched {
    ($form:ident, $value:ty, $as_ref:ident, $make:expr, $absent:expr) => {
        impl<T: Table> Form<Option<$value>> for $form
        where
            T::Written: FromLiteral,
        {
            type Written = T::Written;

            fn read(&self, check: &Check<'_>, place: Place, written: &T::Written) -> Option<Option<$value>> {
                Some(T::read(check, place, written).map($make))
            }

            fn read_over(
                &self,
                check: &Check<'_>,
                place: Place,
                written: &T::Written,
                before: Option<&Option<$value>>,
            ) -> Option<Option<$value>> {
                let before = before.and_then(|before| before.$as_ref());
                Some(T::read_over(check, place, written, before).map($make))
            }

            fn absent(&self, check: &Check<'_>, _: Literal) -> Option<$value> {
                let absent: fn(&Check<'_>) -> Option<T> = $absent;
                absent(check).map($make)
            }

            fn show(&self, value: &Option<$value>) -> Option<Tree> {
                show_switched(value.$as_ref())
            }

            fn tell(&self, value: &Option<$value>) -> String {
                if value.is_some() { "on" } else { "off" }.to_owned()
            }

            fn compare(
                &self,
                changes: &mut Changes,
                table: &str,
                words: &str,
                old: &Option<$value>,
                new: &Option<$value>,
            ) {
                compare_switched(changes, &format!("{table}{words}"), old.$as_ref(), new.$as_ref());
            }

            fn about(&self) -> About {
                part_about::<T>()
            }
        }
    };
}

/// A table that is on without being in the file.
pub(crate) struct OnPart;

switched!(Part, T, as_ref, |it| it, |_| None);
switched!(Part, Arc<T>, as_deref, Arc::new, |_| None);
switched!(OnPart, T, as_ref, |it| it, |check| Some(T::by_default(check)));

/// Tables under the same name, such as `[[listener]]`. They are read together by a check, and compared one by one by the plan of a reload.
pub(crate) struct Listed;

impl<T: Table> Form<Vec<Arc<T>>> for Listed
where
    T::Written: FromLiteral,
{
    type Written = Vec<Field<T::Written>>;

    fn read(&self, _: &Check<'_>, _: Place, _: &Self::Written) -> Option<Vec<Arc<T>>> {
        Some(Vec::new())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<Arc<T>> {
        Vec::new()
    }

    fn show(&self, value: &Vec<Arc<T>>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(|table| table.tree()).collect()))
    }

    fn tell(&self, value: &Vec<Arc<T>>) -> String {
        value.len().to_string()
    }

    fn compare(&self, _: &mut Changes, _: &str, _: &str, _: &Vec<Arc<T>>, _: &Vec<Arc<T>>) {}

    fn about(&self) -> About {
        let one = part_about::<T>();
        let inner = one.inner.map(|inner| Inner { many: Many::Listed, ..inner });
        About { form: "tables".into(), schema: json!({ "type": "array", "items": one.schema }), inner, ..one }
    }
}

/// A table under a name that the file chooses.
pub(crate) trait NamedTable: Table {
    /// Its name.
    fn name(&self) -> &str;
}

/// Tables that each have a name, such as `[upstream.NAME]`. They are read together by a check, and compared one by one by the plan of a reload.
pub(crate) struct UnderNames;

impl<T: NamedTable> Form<Vec<Arc<T>>> for UnderNames {
    type Written = Named<T::Written>;

    fn read(&self, _: &Check<'_>, _: Place, _: &Self::Written) -> Option<Vec<Arc<T>>> {
        Some(Vec::new())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<Arc<T>> {
        Vec::new()
    }

    fn show(&self, value: &Vec<Arc<T>>) -> Option<Tree> {
        Some(Tree::Table(value.iter().map(|table| (table.name().to_owned(), table.tree())).collect()))
    }

    fn tell(&self, value: &Vec<Arc<T>>) -> String {
        value.len().to_string()
    }

    fn compare(&self, _: &mut Changes, _: &str, _: &str, _: &Vec<Arc<T>>, _: &Vec<Arc<T>>) {}

    fn about(&self) -> About {
        let one = part_about::<T>();
        let inner = one.inner.map(|inner| Inner { many: Many::Named, ..inner });
        let names = json!({ "minLength": 1, "maxLength": 128 });
        let schema = json!({ "type": "object", "additionalProperties": one.schema, "propertyNames": names });
        About { form: "tables, each with a name".into(), schema, inner, kind: Kind::Table }
    }
}
