//! Makes of a struct a table of `lb.toml`, and of an enum the words that a key may have.
//!
//! `#[derive(Table)]` reads the fields of a struct with their doc comments and their `#[key(..)]`, and writes what only repeats them:
//! the table as the file has it, and an implementation of isobar's `config::table::Table`, in which each method is one line for each key. What
//! a key can hold is not known here: that is its form, a value of isobar's `config::form`.
//!
//! ```text
//! #[table(enabled = true)]           the table has a key `enabled`, with this default
//!        (is_enabled = Self::is_on)  its value, where the struct says more than on or off; the struct's check then looks at `enabled`
//!        (check = Self::check)       fn(&Check, Place, &Written, Self) -> Option<Self>: looks at several keys together
//!        (rules = Self::RULES)       which of its keys go together, as far as the schema can say it too; the struct's check reports it
//!        (reload = Connections)      what a reload does with its keys, a variant of `Reload`
//! #[key(Whole(1..=100))]             the form
//!      (.., default = 10)            the value of a key that is left out, as the file writes it
//!      (.., otherwise = "the address")   what stands for it, in words, where that depends on other keys; the check puts it there
//!      (.., needed = "..", expected = "..", example = "..")   a key that cannot be left out: what is said then, and a value for examples
//!      (.., required = true)         the same where the table's check says what is missing
//!      (.., shown_if = Self::is_on)  fn(&Self) -> bool: whether `/config` has it; always, if this is left out
//!      (.., name = "type")           the key, where the field has another name
//!      (.., told = "..")             what a reload calls it in the log, where that is not its name
//!      (.., reload = Restart)        what a reload does with it, where that is not what it does with the table
//! ```
//!
//! A field without `#[key(..)]` is no key: it is made by `Default`, and the check fills it.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Data, DeriveInput, Expr, ExprLit, Field, Fields, Ident, Lit, Meta, Token, Type, parse_macro_input,
};

/// Forms that are made of another form, whose type has to be spelt out.
const WRAPPERS: [&str; 3] = ["Maybe", "Else", "List"];

/// Makes of a struct a table of the configuration file.
#[proc_macro_derive(Table, attributes(table, key))]
pub fn table(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand_table(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// Makes of an enum without fields the words that a key may have: each variant in `snake_case` or as its `#[word = ".."]` has it, with its doc
/// comment.
#[proc_macro_derive(Word, attributes(word))]
pub fn word(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand_word(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}

/// A key of the table.
struct Key<'a> {
    field: &'a Ident,
    kind: &'a Type,
    name: String,
    doc: String,
    form: Expr,
    form_type: Tokens,
    attributes: Attributes,
}

/// `name = value` pairs of an attribute.
#[derive(Default)]
struct Attributes(Vec<(String, Expr)>);

impl Attributes {
    fn get(&self, name: &str) -> Option<&Expr> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn refuse_others(&self, known: &[&str]) -> syn::Result<()> {
        match self.0.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, value)) => Err(syn::Error::new_spanned(value, format!("unknown attribute `{key}`"))),
            None => Ok(()),
        }
    }
}

impl Parse for Attributes {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let pairs = Punctuated::<Pair, Token![,]>::parse_terminated(input)?;
        Ok(Self(pairs.into_iter().map(|Pair(name, value)| (name, value)).collect()))
    }
}

struct Pair(String, Expr);

impl Parse for Pair {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name: Ident = input.parse()?;
        input.parse::<Token![=]>()?;
        Ok(Self(name.to_string(), input.parse()?))
    }
}

/// A form, and what is said of the key besides.
struct KeyAttribute(Expr, Attributes);

impl Parse for KeyAttribute {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let form = input.parse()?;
        let attributes = match input.parse::<Option<Token![,]>>()? {
            Some(_) => input.parse()?,
            None => Attributes::default(),
        };
        Ok(Self(form, attributes))
    }
}

fn expand_table(input: &DeriveInput) -> syn::Result<Tokens> {
    let Data::Struct(data) = &input.data else { return Err(syn::Error::new_spanned(&input.ident, "not a struct")) };
    let Fields::Named(fields) = &data.fields else {
        return Err(syn::Error::new_spanned(&input.ident, "fields without names"));
    };
    let of_table = match find(&input.attrs, "table") {
        Some(attribute) => attribute.parse_args::<Attributes>()?,
        None => Attributes::default(),
    };
    of_table.refuse_others(&["enabled", "is_enabled", "check", "rules", "reload"])?;
    let keys: Vec<Key<'_>> =
        fields.named.iter().filter_map(|field| key(field).transpose()).collect::<syn::Result<_>>()?;
    let others: Vec<&Ident> = fields
        .named
        .iter()
        .filter(|field| find(&field.attrs, "key").is_none())
        .filter_map(|field| field.ident.as_ref())
        .collect();
    let written = written(input, &of_table, &keys);
    let table = implementation(input, &of_table, &keys, &others);
    Ok(quote! { #written #table })
}

fn key(field: &Field) -> syn::Result<Option<Key<'_>>> {
    let (Some(attribute), Some(ident)) = (find(&field.attrs, "key"), &field.ident) else { return Ok(None) };
    let KeyAttribute(form, attributes) = attribute.parse_args()?;
    attributes.refuse_others(&[
        "default",
        "otherwise",
        "needed",
        "expected",
        "required",
        "example",
        "shown_if",
        "name",
        "told",
        "reload",
    ])?;
    let name = attributes.get("name").map_or_else(|| Ok(ident.to_string()), text)?;
    let doc = doc(&field.attrs);
    if doc.is_empty() {
        return Err(syn::Error::new_spanned(ident, "a key needs a sentence: its doc comment"));
    }
    let form_type = form_type(&form)?;
    Ok(Some(Key { field: ident, kind: &field.ty, name, doc, form, form_type, attributes }))
}

/// The table as the file has it: a field for each key, with its place.
fn written(input: &DeriveInput, of_table: &Attributes, keys: &[Key<'_>]) -> Tokens {
    let written = format_ident!("Written{}", input.ident);
    let doc = format!("What the file says for [`{}`].", input.ident);
    let enabled = of_table.get("enabled").map(|_| {
        quote! { pub(crate) enabled: crate::config::field::Field<bool>, }
    });
    let fields = keys.iter().map(|Key { field, kind, name, form_type, .. }| {
        let rename = (*field != name).then(|| quote! { #[serde(rename = #name)] });
        quote! {
            #rename
            pub(crate) #field: crate::config::field::Field<<#form_type as crate::config::form::Form<#kind>>::Written>,
        }
    });
    quote! {
        #[doc = #doc]
        #[derive(Debug, Default, ::serde::Deserialize)]
        #[serde(default)]
        pub(crate) struct #written { #enabled #(#fields)* }

        impl crate::config::visibility::OfKind for #written {
            const KIND: crate::config::Kind = crate::config::Kind::Table;
        }

        impl crate::config::form::FromLiteral for #written {
            fn of(_: crate::config::form::Literal) -> Option<Self> {
                None
            }
        }
    }
}

fn implementation(input: &DeriveInput, of_table: &Attributes, keys: &[Key<'_>], others: &[&Ident]) -> Tokens {
    let (name, written) = (&input.ident, format_ident!("Written{}", input.ident));
    let doc = doc(&input.attrs);
    let default_reload = of_table.get("reload").map_or_else(|| quote!(AtOnce), |reload| quote!(#reload));
    let enabled = of_table.get("enabled");
    let enabled_default = enabled.map_or_else(|| quote!(None), |default| quote!(Some(#default)));
    let is_enabled = of_table.get("is_enabled").map(|path| {
        quote! { fn is_enabled(&self) -> bool { #path(self) } }
    });
    let rules = of_table.get("rules").map(|path| {
        quote! { const RULES: &'static [crate::config::rule::KeyRule] = #path; }
    });
    let written_enabled = enabled.map(|_| {
        quote! { fn written_enabled(written: &Self::Written) -> Option<bool> { written.enabled.value().copied() } }
    });
    // A table that is off is read all the same: what is wrong with it is told.
    let off = (enabled.is_some() && is_enabled.is_none()).then(|| {
        quote! { let it = it.filter(|_| Self::says_enabled(written)); }
    });
    let check = match of_table.get("check") {
        Some(path) => quote! { #path(check, place, written, it) },
        None => quote! { Some(it) },
    };
    // All of them before one that is needed ends it: every problem is told.
    let read = keys.iter().map(read_key);
    let needed = keys.iter().filter(|key| key.attributes.get("needed").is_some()).map(|Key { field, .. }| {
        quote! { let #field = #field?; }
    });
    let (fields, defaults) = (keys.iter().map(|key| key.field), keys.iter().map(default_key));
    let shown = keys.iter().map(show_key);
    let compared = keys.iter().map(|key| compare_key(key, &default_reload));
    let kept = keys.iter().filter(|key| reload(key, &default_reload).to_string() == "Restart").map(|key| key.field);
    let described = keys.iter().map(|key| describe_key(key, &default_reload));
    quote! {
        const _: () = {
            use crate::config::check::Check;
            use crate::config::difference::Changes;
            use crate::config::form::{self, Form, Literal};
            use crate::config::report::Place;
            use crate::config::table::{Key, Reload, Table};
            use crate::config::json_tree::Tree;

            impl Table for #name {
                type Written = #written;
                const DOC: &'static str = #doc;
                const ENABLED: Option<bool> = #enabled_default;
                #rules
                #is_enabled
                #written_enabled

                fn read_over(check: &Check<'_>, place: Place, written: &#written, before: Option<&Self>) -> Option<Self> {
                    #(#read)*
                    #(#needed)*
                    let it = Self { #(#fields,)* #(#others: Default::default(),)* };
                    let it = #check;
                    #off
                    it
                }

                fn by_default(check: &Check<'_>) -> Self {
                    Self { #(#defaults,)* #(#others: Default::default(),)* }
                }

                fn entries(&self) -> Vec<(String, Tree)> {
                    let mut entries = Vec::new();
                    #(#shown)*
                    entries
                }

                fn compare(changes: &mut Changes, table: &str, old: &Self, new: &Self) {
                    #(#compared)*
                }

                fn keep_what_needs_a_restart(&mut self, old: &Self) {
                    #(self.#kept.clone_from(&old.#kept);)*
                }

                fn keys() -> Vec<Key> {
                    vec![#(#described),*]
                }
            }
        };
    }
}

fn read_key(Key { field, kind, name, form, form_type, attributes, .. }: &Key<'_>) -> Tokens {
    match (attributes.get("needed"), attributes.get("expected")) {
        (Some(needed), expected) => {
            let expected = expected.map_or_else(|| quote!(""), |expected| quote!(#expected));
            quote! {
                let #field = form::needed::<#kind, #form_type>(check, place, #name, &#form, &written.#field, #needed, #expected);
            }
        }
        (None, _) => {
            let default = default(attributes);
            quote! {
                let #field = form::read::<#kind, #form_type>(check, &#form, &written.#field, before.map(|it| &it.#field), || match before {
                    Some(before) => before.#field.clone(),
                    None => <#form_type as Form<#kind>>::absent(&#form, check, #default),
                });
            }
        }
    }
}

fn default_key(Key { field, kind, form, form_type, attributes, .. }: &Key<'_>) -> Tokens {
    let default = match attributes.get("needed") {
        Some(_) => literal(attributes.get("example")),
        None => default(attributes),
    };
    quote! { #field: <#form_type as Form<#kind>>::absent(&#form, check, #default) }
}

fn show_key(Key { field, kind, name, form, form_type, attributes, .. }: &Key<'_>) -> Tokens {
    let show = quote! {
        entries.extend(<#form_type as Form<#kind>>::show(&#form, &self.#field).map(|value| (#name.to_owned(), value)));
    };
    match attributes.get("shown_if") {
        Some(path) => quote! { if #path(self) { #show } },
        None => show,
    }
}

fn compare_key(key: &Key<'_>, default_reload: &Tokens) -> Tokens {
    let Key { field, kind, name, form, form_type, attributes, .. } = key;
    let told = attributes.get("told").map_or_else(|| quote!(#name), |told| quote!(#told));
    let reload = reload(key, default_reload);
    quote! {
        if old.#field != new.#field {
            changes.take_effect(Reload::#reload);
            <#form_type as Form<#kind>>::compare(&#form, changes, table, #told, &old.#field, &new.#field);
        }
    }
}

fn describe_key(key: &Key<'_>, default_reload: &Tokens) -> Tokens {
    let Key { kind, name, doc, form, form_type, attributes, .. } = key;
    let needed = attributes.get("needed").or(attributes.get("required")).is_some();
    let (default, example) = (default(attributes), literal(attributes.get("example")));
    let reload = reload(key, default_reload);
    quote! {
        Key {
            name: #name,
            doc: #doc,
            about: <#form_type as Form<#kind>>::about(&#form),
            default: #default,
            example: #example,
            is_needed: #needed,
            reload: Reload::#reload,
        }
    }
}

fn reload(key: &Key<'_>, default: &Tokens) -> Tokens {
    key.attributes.get("reload").map_or_else(|| default.clone(), |reload| quote!(#reload))
}

/// What stands for a key that is left out.
fn default(attributes: &Attributes) -> Tokens {
    match attributes.get("otherwise") {
        Some(words) => quote!(Literal::Words(#words)),
        None => literal(attributes.get("default")),
    }
}

/// A value as the file writes it.
fn literal(value: Option<&Expr>) -> Tokens {
    let Some(value) = value else { return quote!(Literal::Nothing) };
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(_), .. }) => quote!(Literal::Text(#value)),
        Expr::Lit(ExprLit { lit: Lit::Bool(_), .. }) => quote!(Literal::Flag(#value)),
        Expr::Lit(ExprLit { lit: Lit::Float(_), .. }) => quote!(Literal::Decimal(#value)),
        Expr::Array(array) => {
            let members = array.elems.iter().map(|member| literal(Some(member)));
            quote!(Literal::List(&[#(#members),*]))
        }
        _ => quote!(Literal::Number(#value)),
    }
}

/// The type of a form: of `Whole(1..=5)` it is `Whole`, of `List(Network)` it is `List<Network>`.
fn form_type(form: &Expr) -> syn::Result<Tokens> {
    match form {
        Expr::Path(path) => Ok(quote!(#path)),
        Expr::Call(call) => {
            let func = &call.func;
            let wraps = match &**func {
                Expr::Path(path) => {
                    path.path.segments.last().is_some_and(|last| WRAPPERS.iter().any(|it| last.ident == it))
                }
                _ => false,
            };
            match call.args.first() {
                Some(inner) if wraps => {
                    let inner = form_type(inner)?;
                    Ok(quote!(#func<#inner>))
                }
                _ => Ok(quote!(#func)),
            }
        }
        _ => Err(syn::Error::new_spanned(form, "not a form, such as `Timeout` or `Whole(1..=100)`")),
    }
}

fn expand_word(input: &DeriveInput) -> syn::Result<Tokens> {
    let Data::Enum(data) = &input.data else { return Err(syn::Error::new_spanned(&input.ident, "not an enum")) };
    let name = &input.ident;
    let (mut idents, mut words, mut docs) = (Vec::new(), Vec::new(), Vec::new());
    for variant in &data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            return Err(syn::Error::new_spanned(variant, "a variant with fields is no word"));
        }
        idents.push(&variant.ident);
        let spelt = find(&variant.attrs, "word").map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) => text(&pair.value),
            other => Err(syn::Error::new_spanned(other, "not `word = \"..\"`")),
        });
        words.push(spelt.unwrap_or_else(|| Ok(snake_case(&variant.ident.to_string())))?);
        docs.push(doc(&variant.attrs));
    }
    Ok(quote! {
        impl crate::config::form::Word for #name {
            const WORDS: &'static [(&'static str, Self, &'static str)] = &[#((#words, Self::#idents, #docs)),*];

            fn word(self) -> &'static str {
                match self { #(Self::#idents => #words),* }
            }
        }

        impl #name {
            /// Each of them.
            pub fn all() -> impl Iterator<Item = Self> {
                <Self as crate::config::form::Word>::WORDS.iter().map(|(_, value, _)| *value)
            }

            /// As `lb.toml` writes it.
            pub fn as_str(self) -> &'static str {
                crate::config::form::Word::word(self)
            }
        }
    })
}

fn snake_case(name: &str) -> String {
    let mut word = String::new();
    for (index, c) in name.char_indices() {
        if c.is_ascii_uppercase() && index > 0 {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

fn find<'a>(attributes: &'a [Attribute], name: &str) -> Option<&'a Attribute> {
    attributes.iter().find(|attribute| attribute.path().is_ident(name))
}

/// The doc comment as one paragraph.
fn doc(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => text(&pair.value).ok(),
        _ => None,
    });
    lines
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
        .trim()
        .to_owned()
}

fn text(value: &Expr) -> syn::Result<String> {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(text.value()),
        _ => Err(syn::Error::new_spanned(value, "not a text")),
    }
}
