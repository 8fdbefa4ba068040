//! A disk that can be told to fail: a library in C, compiled when it is needed, stands between a daemon and one directory.
//!
//! The daemon is what users have; nothing in it knows of this. What the model of a power failure rests on is in
//! `disk/shim.c`.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use postkeep_testkit::{Scratch, scratch};

use crate::postmap::Random;

/// What is on the disk or not is decided for so many bytes together.
const SECTOR: usize = 512;

/// Numbers in the control file, in their order.
#[derive(Clone, Copy)]
enum Field {
    FailSyncs,
    KillAt,
    KillInside,
    Steps,
    Syncs,
    Names,
    NamesSynced,
}

/// A directory for tables, on a disk that can fail.
#[derive(Debug)]
pub struct Disk {
    place: Scratch,
    root: PathBuf,
    control: File,
    is_mounted: bool,
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.root).status();
        }
    }
}

impl Disk {
    /// Makes an empty directory that daemons may write to.
    ///
    /// # Errors
    /// Of the file system or the compiler.
    pub fn new(purpose: &str) -> Result<Self> {
        let place = Scratch::new(purpose)?;
        let root = place.directory("tables", 0o755)?;
        scratch::give_to("postfix", &root)?;
        place.directory("shadow", 0o777)?;
        let control = place.file("control", &"\0".repeat(64))?;
        fs::set_permissions(&control, Permissions::from_mode(0o666))?;
        let control = File::options().read(true).write(true).open(control)?;
        let status = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(place.path().join("shim.so"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/disk/shim.c"))
            .arg("-ldl")
            .status()
            .context("cc")?;
        ensure!(status.success(), "cc: {status}");
        let this = Self {
            place,
            root,
            control,
            is_mounted: false,
        };
        this.settle()?;
        Ok(this)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path that is not on the disk.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Lets the directory be a small file system (bytes), which is empty.
    ///
    /// # Errors
    /// There may be none.
    pub fn limit(&mut self, size: u64) -> Result<()> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={size},mode=0755"))
            .arg("none")
            .arg(&self.root)
            .status()?;
        ensure!(status.success(), "mount: {status}");
        self.is_mounted = true;
        scratch::give_to("postfix", &self.root)?;
        self.settle()
    }

    /// A command that runs `executable` as proxymap(8) on this disk.
    ///
    /// # Errors
    /// Of the file system.
    pub fn wrapped(&self, executable: &Path) -> Result<PathBuf> {
        let place = self.place.path().display();
        let script = format!(
            "#!/bin/bash\nexport DISK_ROOT={root} DISK_SHADOW={place}/shadow DISK_CONTROL={place}/control\n\
             export LD_PRELOAD={place}/shim.so\nexec -a proxymap {} \"$@\"\n",
            executable.display(),
            root = self.root.display(),
        );
        let path = self.place.file("wrapped", &script)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(path)
    }

    fn read(&self, field: Field) -> Result<i32> {
        let mut bytes = [0; 4];
        self.control.read_exact_at(&mut bytes, 4 * field as u64)?;
        Ok(i32::from_ne_bytes(bytes))
    }

    fn write(&self, field: Field, number: i32) -> Result<()> {
        let bytes = number.to_ne_bytes();
        Ok(self.control.write_all_at(&bytes, 4 * field as u64)?)
    }

    /// Lets the next `number` calls of fsync(2) and fdatasync(2) fail, or all of them when it is negative.
    ///
    /// # Errors
    /// Of the file system.
    pub fn fail_syncs(&self, number: i32) -> Result<()> {
        self.write(Field::FailSyncs, number)
    }

    /// Kills the process at the change of this number from now on, in the middle of it where that can be.
    ///
    /// # Errors
    /// Of the file system.
    pub fn kill_at(&self, number: i32, inside: bool) -> Result<()> {
        self.write(Field::KillInside, inside.into())?;
        self.write(Field::KillAt, number)
    }

    /// How many changes and how many calls of fsync(2) and fdatasync(2) there were.
    ///
    /// # Errors
    /// Of the file system.
    pub fn counts(&self) -> Result<(i32, i32)> {
        Ok((self.read(Field::Steps)?, self.read(Field::Syncs)?))
    }

    /// Everything is on the disk as it is now. No process may be at work.
    ///
    /// # Errors
    /// Of the file system.
    pub fn settle(&self) -> Result<()> {
        let shadow = self.place.path().join("shadow");
        for entry in fs::read_dir(&shadow)? {
            fs::remove_file(entry?.path())?;
        }
        let mut names = Vec::new();
        for (name, inode) in self.inodes()? {
            fs::copy(self.root.join(&name), shadow.join(format!("data.{inode}")))?;
            names.push(format!("{inode} {name}\n"));
        }
        for entry in fs::read_dir(&shadow)? {
            fs::set_permissions(entry?.path(), Permissions::from_mode(0o666))?;
        }
        fs::write(shadow.join("names.0"), names.concat())?;
        self.write(Field::Names, 0)?;
        self.write(Field::NamesSynced, 0)
    }

    fn inodes(&self) -> Result<BTreeMap<String, u64>> {
        let mut inodes = BTreeMap::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("odd name")?;
            inodes.insert(name, entry.metadata()?.ino());
        }
        Ok(inodes)
    }

    /// The power fails, when no process is at work any more: what was brought to the disk is there; of what was not, any
    /// part may be. Names are there as after some change of them behind the last one that was brought to the disk.
    ///
    /// # Errors
    /// Of the file system.
    pub fn power_failure(&self, random: &mut Random) -> Result<()> {
        let shadow = self.place.path().join("shadow");
        let (synced, newest) = (self.read(Field::NamesSynced)?, self.read(Field::Names)?);
        let behind = usize::try_from(newest - synced)?;
        let chosen = synced + i32::try_from(random.below(behind + 1))?;
        let names = fs::read_to_string(shadow.join(format!("names.{chosen}")))?;
        let mut current = BTreeMap::new();
        for (name, inode) in self.inodes()? {
            let path = self.root.join(name);
            current.insert(inode, (fs::read(&path)?, fs::metadata(&path)?));
            fs::remove_file(path)?;
        }
        for line in names.lines() {
            let (inode, name) = line.split_once(' ').context("list of names")?;
            let durable = match fs::read(shadow.join(format!("data.{inode}"))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                durable => durable?,
            };
            let newer = current.get(&inode.parse()?);
            let bytes = match newer {
                Some((newer, _)) => mixed(&durable, newer, random),
                None => durable,
            };
            let path = self.root.join(name);
            fs::write(&path, bytes)?;
            let mode = newer.map_or(0o644, |(_, metadata)| metadata.mode() & 0o7777);
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            scratch::give_to("postfix", &path)?;
        }
        self.settle()
    }
}

/// Each part of a file is as it was, or as it is.
fn mixed(durable: &[u8], newer: &[u8], random: &mut Random) -> Vec<u8> {
    let odds = random.below(4);
    let mut takes_newer = || match odds {
        0 => false,
        1 => true,
        _ => random.below(2) == 0,
    };
    let length = if takes_newer() { newer } else { durable }.len();
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let end = length.min(bytes.len() + SECTOR);
        let from = if takes_newer() { newer } else { durable };
        bytes.extend_from_slice(from.get(bytes.len()..from.len().min(end)).unwrap_or(&[]));
        bytes.resize(end, 0);
    }
    bytes
}
