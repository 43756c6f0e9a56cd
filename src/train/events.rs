//! TensorBoard event files: length, masked CRC, protobuf `Event`, masked CRC.
//!
//! Source: TensorFlow's `core/lib/io/record_writer.h` and `core/util/event.proto`.
use crate::{Error, Result};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that is being written.
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    pub(super) fn create(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let (seconds, pid) = (now() as u64, std::process::id());
        let mut name = format!("events.out.tfevents.{seconds}.downhill.{pid}");
        // Another machine may have a process of this number in this second.
        let (file, path) = loop {
            let path = dir.join(&name);
            match File::create_new(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => name += "x",
                file => break (file.map_err(|e| Error::io(&path, e))?, path),
            }
        };
        let mut events = Self { path, file };
        events.write(&[bytes_field(3, b"brain.Event:2")])?;
        Ok(events)
    }

    /// One number under `tag` at `step`.
    pub(super) fn scalar(&mut self, tag: &str, step: i64, value: f64) -> Result<()> {
        let mut entry = bytes_field(1, tag.as_bytes());
        entry.push(2 << 3 | 5); // simple_value, 32 bits
        entry.extend((value as f32).to_le_bytes());
        let mut at = vec![2 << 3]; // step, varint
        varint(step as u64, &mut at);
        self.write(&[at, bytes_field(5, &bytes_field(1, &entry))])
    }

    fn write(&mut self, fields: &[Vec<u8>]) -> Result<()> {
        let mut event = vec![1 << 3 | 1]; // wall_time, 64 bits
        event.extend(now().to_le_bytes());
        event.extend(fields.concat());
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0., |d| d.as_secs_f64())
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    varint(bytes.len() as u64, &mut field);
    field.extend(bytes);
    field
}

fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX; // CRC-32C, bit by bit: records are short
    for &b in bytes {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc_is_castagnoli() {
        // RFC 3720, B.4: 32 bytes of zeros give 8a9136aa.
        let masked = 0x8A91_36AA_u32.rotate_right(15).wrapping_add(0xA282_EAD8);
        assert_eq!(super::masked_crc(&[0; 32]), masked);
    }
}
