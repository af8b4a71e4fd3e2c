//! True or false, words of closed lists, and names.

use std::collections::HashSet;

use serde_json::json;

use super::{About, Form, Literal, or_variable};
use crate::config::check::{Check, value};
use crate::config::difference::Changes;
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::visibility::{Kind, Word as Text};

/// True or false.
pub(crate) struct Switch;

impl Form<bool> for Switch {
    type Written = bool;

    fn read(&self, _: &Check<'_>, _: Place, written: &bool) -> Option<bool> {
        Some(*written)
    }

    fn show(&self, value: &bool) -> Option<Tree> {
        Some((*value).into())
    }

    fn tell(&self, value: &bool) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        About::new::<bool>("true or false", or_variable(json!({ "type": "boolean" })))
    }
}

/// The words that a key may have: `#[derive(Word)]`.
pub(crate) trait Word: Copy + PartialEq + 'static {
    /// Each as the file writes it, what it means, and its sentence.
    const WORDS: &'static [(&'static str, Self, &'static str)];

    /// As the file writes it.
    fn word(self) -> &'static str;
}

/// A word of a closed list.
pub(crate) struct OneOf;

/// The description of a closed list of words.
pub(crate) fn words_about(words: &[&str]) -> About {
    let listed: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
    About::new::<Text>(listed.join(" or "), or_variable(json!({ "enum": words })))
}

impl<V: Word> Form<V> for OneOf {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<V> {
        let choices: Vec<_> = V::WORDS.iter().map(|(word, value, _)| (*word, *value)).collect();
        value::chosen(check, place, written, &choices)
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some(value.word().into())
    }

    fn tell(&self, value: &V) -> String {
        value.word().to_owned()
    }

    fn about(&self) -> About {
        words_about(&V::WORDS.iter().map(|(word, ..)| *word).collect::<Vec<_>>())
    }
}

/// The same where a word may be left out, and then what is above decides.
impl<V: Word> Form<Option<V>> for OneOf {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<Option<V>> {
        <Self as Form<V>>::read(self, check, place, written).map(Some)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Option<V> {
        None
    }

    fn show(&self, value: &Option<V>) -> Option<Tree> {
        value.map(|value| value.word().into())
    }

    fn tell(&self, value: &Option<V>) -> String {
        value.map_or("none", Word::word).to_owned()
    }

    fn about(&self) -> About {
        <Self as Form<V>>::about(self)
    }
}

/// A word of a closed list that is in an array once at most. `what` is what the words are, in problems.
pub(crate) struct Once(pub(crate) &'static str);

impl<V: Word> Form<Vec<V>> for Once {
    type Written = Vec<Field<Text>>;

    fn read(&self, check: &Check<'_>, _: Place, written: &Self::Written) -> Option<Vec<V>> {
        let (what, mut found) = (self.0, Vec::new());
        for (place, text) in written.iter().filter_map(Field::given) {
            match V::WORDS.iter().find(|(word, ..)| word.eq_ignore_ascii_case(text)) {
                Some((_, value, _)) if found.contains(value) => {
                    check.add(place, Problem::error(format!("{what} {} is there twice", check.quote(place, text))));
                }
                Some((_, value, _)) => found.push(*value),
                None => {
                    let problem = Problem::error(format!("unknown {what} {}", check.quote(place, text)));
                    check.add(place, problem.one_of(text, V::WORDS.iter().map(|(word, ..)| *word)));
                }
            }
        }
        Some(found)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<V> {
        Vec::new()
    }

    fn show(&self, value: &Vec<V>) -> Option<Tree> {
        Some(Tree::List(value.iter().map(|member| member.word().into()).collect()))
    }

    fn tell(&self, value: &Vec<V>) -> String {
        value.iter().map(|member| member.word()).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<V>, new: &Vec<V>) {
        let told = |value: &Vec<V>| value.iter().map(|member| member.word().to_owned()).collect::<Vec<_>>();
        changes.told_members(Kind::Plain, &format!("{table}{words}"), &told(old), &told(new));
    }

    fn about(&self) -> About {
        let members: HashSet<_> = V::WORDS.iter().map(|(word, ..)| *word).collect();
        debug_assert_eq!(members.len(), V::WORDS.len());
        let one = <OneOf as Form<V>>::about(&OneOf);
        let schema = json!({ "type": "array", "items": one.schema });
        About { form: format!("an array of {}, each once at most", one.form.replace(" or ", ", ")), schema, ..one }
    }
}

/// The name of another table; the text is what that is. Whether there is such a table is asked by a check.
pub(crate) struct Reference(pub(crate) &'static str);

impl<V: for<'a> From<&'a str> + AsRef<str>> Form<V> for Reference {
    type Written = Text;

    fn read(&self, _: &Check<'_>, _: Place, written: &Text) -> Option<V> {
        Some(V::from(written.as_str()))
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some(value.as_ref().into())
    }

    fn tell(&self, value: &V) -> String {
        value.as_ref().to_owned()
    }

    fn about(&self) -> About {
        About::new::<Text>(format!("the name of {}", self.0), json!({ "type": "string" }))
    }
}

/// The name of a listener, route or upstream.
pub(crate) struct Name;

impl<V: for<'a> From<&'a str> + AsRef<str>> Form<V> for Name {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<V> {
        value::name(check, place, written).map(V::from)
    }

    fn show(&self, value: &V) -> Option<Tree> {
        Some(value.as_ref().into())
    }

    fn tell(&self, value: &V) -> String {
        value.as_ref().to_owned()
    }

    fn about(&self) -> About {
        About::new::<Text>("a name", json!({ "type": "string", "minLength": 1, "maxLength": 128 }))
    }
}
