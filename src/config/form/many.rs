//! Values that may be left out, and arrays.

use serde_json::json;

use super::{About, Form, Inner, Literal, Many};
use crate::config::check::Check;
use crate::config::difference::Changes;
use crate::config::field::Field;
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::visibility::OfKind;

/// A value that may be left out.
pub(crate) struct Maybe<F>(pub(crate) F);

impl<V, F: Form<V>> Form<Option<V>> for Maybe<F> {
    type Written = F::Written;

    fn read(&self, check: &Check<'_>, place: Place, written: &F::Written) -> Option<Option<V>> {
        self.0.read(check, place, written).map(Some)
    }

    fn absent(&self, check: &Check<'_>, default: Literal) -> Option<V> {
        match default {
            Literal::Nothing | Literal::Words(_) => None,
            default => Some(self.0.absent(check, default)),
        }
    }

    fn show(&self, value: &Option<V>) -> Option<Tree> {
        value.as_ref().and_then(|value| self.0.show(value))
    }

    fn tell(&self, value: &Option<V>) -> String {
        value.as_ref().map_or_else(|| "none".into(), |value| self.0.tell(value))
    }

    fn about(&self) -> About {
        self.0.about()
    }
}

/// A value that may be left out, and the words of a reload for that.
pub(crate) struct Else<F>(pub(crate) F, pub(crate) &'static str);

impl<V, F: Form<V>> Form<Option<V>> for Else<F> {
    type Written = F::Written;

    fn read(&self, check: &Check<'_>, place: Place, written: &F::Written) -> Option<Option<V>> {
        self.0.read(check, place, written).map(Some)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Option<V> {
        None
    }

    fn show(&self, value: &Option<V>) -> Option<Tree> {
        value.as_ref().and_then(|value| self.0.show(value))
    }

    fn tell(&self, value: &Option<V>) -> String {
        value.as_ref().map_or_else(|| self.1.to_owned(), |value| self.0.tell(value))
    }

    fn about(&self) -> About {
        self.0.about()
    }
}

/// An array of values of one form. Members that are wrong are left out.
pub(crate) struct List<F>(pub(crate) F);

impl<V, F: Form<V>> Form<Vec<V>> for List<F> {
    type Written = Vec<Field<F::Written>>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<V>> {
        let members = written.iter().filter_map(Field::given);
        Some(members.filter_map(|(place, member)| self.0.read(check, place, member)).collect())
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<V> {
        Vec::new()
    }

    fn show(&self, value: &Vec<V>) -> Option<Tree> {
        Some(Tree::List(value.iter().filter_map(|member| self.0.show(member)).collect()))
    }

    fn tell(&self, value: &Vec<V>) -> String {
        value.iter().map(|member| self.0.tell(member)).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<V>, new: &Vec<V>) {
        let told = |value: &Vec<V>| value.iter().map(|member| self.0.tell(member)).collect::<Vec<_>>();
        changes.told_members(Self::Written::KIND, &format!("{table}{words}"), &told(old), &told(new));
    }

    fn about(&self) -> About {
        let about = self.0.about();
        let form = format!("an array, each {}", about.form);
        let inner = about.inner.map(|inner| Inner { many: Many::Listed, ..inner });
        About { form, schema: json!({ "type": "array", "items": about.schema }), inner, ..about }
    }
}
