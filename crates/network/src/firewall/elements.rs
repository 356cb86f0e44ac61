//! Set elements by nfnetlink: one batch, applied whole or not at all.
//!
//! Source: `include/uapi/linux/netfilter/nf_tables.h`.

use rustix::io::Errno;

use crate::netlink::message::CREATE;
use crate::netlink::{Batch, Message, NetlinkError, Socket};
use crate::ruleset::{Element, Family};

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NFT_MSG_GETTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 1;
const NFT_MSG_NEWSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFT_MSG_DELSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// Elements in one message, far below what an attribute's 16-bit length holds.
const PER_MESSAGE: usize = 128;

/// `struct nfgenmsg`: family, version, and a number in network order.
fn nfgenmsg(family: u8, number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [family, 0, high, low]
}

/// Deletes `gone` and adds `new`, in that order, in one transaction.
pub(super) fn change(
    socket: &mut Socket,
    table: &str,
    gone: &[&Element],
    new: &[&Element],
) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    let edge = |kind| Message::new(kind, 0, &nfgenmsg(0, NFNL_SUBSYS_NFTABLES));
    batch.push_silent("begin a change of packet rules", edge(NFNL_MSG_BATCH_BEGIN));
    for (kind, verb, elements) in [
        (NFT_MSG_DELSETELEM, "delete", gone),
        (NFT_MSG_NEWSETELEM, "add", new),
    ] {
        for chunk in elements.chunk_by(|a, b| a.set().1 == b.set().1) {
            for part in chunk.chunks(PER_MESSAGE) {
                let (family, set) = part[0].set();
                let message = elements_message(kind, family, table, set, part);
                batch.push(format!("{verb} elements of set {set}"), message);
            }
        }
    }
    batch.push_silent("end a change of packet rules", edge(NFNL_MSG_BATCH_END));
    socket.run(&batch)
}

fn elements_message(
    kind: u16,
    family: Family,
    table: &str,
    set: &str,
    elements: &[&Element],
) -> Message {
    let flags = if kind == NFT_MSG_NEWSETELEM {
        CREATE
    } else {
        0
    };
    let mut message = Message::new(kind, flags, &nfgenmsg(family as u8, 0));
    message
        .text(NFTA_SET_ELEM_LIST_TABLE, table)
        .text(NFTA_SET_ELEM_LIST_SET, set);
    message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
        for element in elements {
            list.nest(NFTA_LIST_ELEM, |entry| {
                entry.nest(NFTA_SET_ELEM_KEY, |key| {
                    key.bytes(NFTA_DATA_VALUE, &element.key());
                });
                if let Some(data) = element.data() {
                    entry.nest(NFTA_SET_ELEM_DATA, |value| {
                        value.bytes(NFTA_DATA_VALUE, &data);
                    });
                }
            });
        }
    });
    message
}

/// Whether both tables are there.
pub(super) fn tables_exist(socket: &mut Socket, table: &str) -> Result<bool, NetlinkError> {
    for family in [Family::Inet, Family::Bridge] {
        let mut request = Message::new(NFT_MSG_GETTABLE, 0, &nfgenmsg(family as u8, 0));
        request.text(NFTA_TABLE_NAME, table);
        match socket.ask("look up a table of packet rules", request, |_, _| {}) {
            Ok(()) => {}
            Err(error) if error.errno == Errno::NOENT => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
