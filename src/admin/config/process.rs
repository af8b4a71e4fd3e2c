//! What concerns the process as a whole: the admin address, logs, overload.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::Shown;
use super::value::{duration, entry_if};
use crate::config::{
    AccessLogConfig, AccessLogFormat, AccessLogOutput, AdminConfig, LogConfig, LogFormat, OverloadConfig, Secret,
};

impl Serialize for Shown<&AdminConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let AdminConfig { address, token, unix_socket } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &address.is_some())?;
        entry_if(&mut map, "address", address.as_ref())?;
        entry_if(&mut map, "token", token.as_ref().map(Secret::reveal).as_ref())?;
        if let Some(path) = unix_socket {
            map.serialize_entry("unix_socket", &path.display().to_string())?;
        }
        map.end()
    }
}

impl Serialize for Shown<&LogConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let LogConfig { level, format } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("level", level)?;
        let format = match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        map.serialize_entry("format", format)?;
        map.end()
    }
}

impl Serialize for Shown<&AccessLogConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let AccessLogConfig { format, output, buffer } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        let format = match format {
            AccessLogFormat::Json => "json",
            AccessLogFormat::Combined => "combined",
        };
        map.serialize_entry("format", format)?;
        match output {
            AccessLogOutput::Stdout => map.serialize_entry("output", "stdout")?,
            AccessLogOutput::File(path) => map.serialize_entry("output", &path.display().to_string())?,
        }
        map.serialize_entry("buffer", buffer)?;
        map.end()
    }
}

impl Serialize for Shown<&OverloadConfig> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let OverloadConfig { lag, descriptors_percent, memory_percent } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("enabled", &true)?;
        map.serialize_entry("lag", &lag.map_or_else(|| "none".into(), duration))?;
        // All of it is no limit, and what the file says for that.
        map.serialize_entry("descriptors_percent", &descriptors_percent.unwrap_or(100))?;
        map.serialize_entry("memory_percent", &memory_percent.unwrap_or(100))?;
        map.end()
    }
}
