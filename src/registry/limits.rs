//! What a registration may be: clients are not trusted, and what they say is kept, shown, and told to others.

use super::instance::Registration;

/// Bytes of a service's name, of an id and of a host.
const NAME_BYTES_MAX: usize = 128;
const ID_BYTES_MAX: usize = 256;
const HOST_BYTES_MAX: usize = 253;
/// Tags and their bytes.
const TAGS_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 256;
/// Entries of metadata and their bytes.
const META_MAX: usize = 64;
const META_BYTES_MAX: usize = 1_024;
/// Checks of an instance.
const CHECKS_MAX: usize = 16;
/// Bytes of any other text.
const TEXT_BYTES_MAX: usize = 2_048;

/// What is wrong with a registration.
pub(super) fn refuse(said: &Registration) -> Result<(), String> {
    let Registration { service, id, address, tags, meta, checks, .. } = said;
    name("service name", service)?;
    text("id", id, ID_BYTES_MAX)?;
    if id.is_empty() {
        return Err("the id is empty".into());
    }
    text("address", address, HOST_BYTES_MAX)?;
    if address.chars().any(|c| c.is_whitespace() || "/?#@".contains(c)) {
        return Err(format!("{address:?} is no IP address and no name"));
    }
    at_most("tags", tags.len(), TAGS_MAX)?;
    tags.iter().try_for_each(|tag| text("tag", tag, TAG_BYTES_MAX))?;
    self::meta(meta.iter())?;
    at_most("checks", checks.len(), CHECKS_MAX)?;
    for check in checks {
        text("check id", &check.id, ID_BYTES_MAX)?;
        text("check name", &check.name, TEXT_BYTES_MAX)?;
        text_of_lines("notes of a check", &check.notes, TEXT_BYTES_MAX)?;
    }
    let Some(info) = &said.eureka else { return Ok(()) };
    info.texts().try_for_each(|it| text("text of an instance", it, TEXT_BYTES_MAX))?;
    self::meta(info.data_center_metadata.iter())
}

/// Metadata, which may be added to.
pub(super) fn meta<'m>(meta: impl ExactSizeIterator<Item = (&'m String, &'m String)>) -> Result<(), String> {
    at_most("entries of metadata", meta.len(), META_MAX)?;
    for (name, value) in meta {
        if name.len() + value.len() > META_BYTES_MAX {
            return Err(format!("an entry of metadata is longer than {META_BYTES_MAX} bytes"));
        }
        text("metadata", name, META_BYTES_MAX)?;
        text_of_lines("metadata", value, META_BYTES_MAX)?;
    }
    Ok(())
}

/// A service's name: it stands in paths.
pub(super) fn name(what: &str, text: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:~$@+".contains(c);
    match text {
        "" => Err(format!("the {what} is empty")),
        _ if text.len() > NAME_BYTES_MAX => Err(format!("the {what} is longer than {NAME_BYTES_MAX} bytes")),
        _ if !text.chars().all(good) => {
            Err(format!("the {what} {text:?} has other characters than letters, digits and -_.:~$@+"))
        }
        _ => Ok(()),
    }
}

fn text(what: &str, text: &str, most: usize) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err(format!("a {what} has control characters"));
    }
    text_of_lines(what, text, most)
}

fn text_of_lines(what: &str, text: &str, most: usize) -> Result<(), String> {
    if text.len() > most {
        return Err(format!("a {what} is longer than {most} bytes"));
    }
    if text.chars().any(|c| c.is_control() && !"\n\r\t".contains(c)) {
        return Err(format!("a {what} has control characters"));
    }
    Ok(())
}

fn at_most(what: &str, count: usize, most: usize) -> Result<(), String> {
    if count > most { Err(format!("{count} {what}, and {most} are the most")) } else { Ok(()) }
}
