// SPDX-License-Identifier: GPL-3.0-or-later OR GPL-2.0-only
/*
 * Copyright: the iovirt.host authors
 *
 * vmdqsim: a network port in software that gives macvlans pools of queues of
 * their own ("l2-fwd-offload") as ixgbe does, for the lab host, whose emulated
 * cards cannot. macvlan, ethtool and the queue files are the kernel's own.
 *
 * A port is a PCI function 1234:11e8 (QEMU's "edu" device) or a platform
 * device vmdqsim.N. Ports 2k and 2k+1, as they are found, are joined by a wire.
 * VMDQ=P,P,... gives a port P pools; pool 0 is the port itself, so P-1
 * macvlans can be in hardware. It is loaded into the lab's hosts only. The
 * second licence is for the kernel, which takes modules of its own alone.
 */
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/pci.h>
#include <linux/netdevice.h>
#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/if_macvlan.h>
#include <linux/rtnetlink.h>

#define MAXP	16
#define MAXQ	64
#define MAXPOOL	32

static int ports = 1;
module_param(ports, int, 0444);
MODULE_PARM_DESC(ports, "number of platform ports (default 1)");
static int VMDQ[MAXP] = { [0 ... MAXP - 1] = -1 };
/* all are shown in sysfs when none was given */
static int n_vmdq = MAXP;
module_param_array(VMDQ, int, &n_vmdq, 0444);
MODULE_PARM_DESC(VMDQ, "pools per port, pool 0 included: 0/1 = off, 2-32; -1 or unset: 4");

struct vs_pool {
	struct net_device *vdev;	/* NULL = free; pool 0 = port */
	u8 mac[ETH_ALEN];
	int pool;
};

struct vs_stat {
	u64 pkts, bytes;
};

struct vs_port {
	struct net_device *dev;
	int id, npools, rss, rss_max;
	bool vmdq_on;			/* queues laid out for pools */
	struct vs_pool pool[MAXPOOL];
	struct vs_stat tx[MAXQ], rx[MAXQ];
	u64 n_add, n_add_fail, n_del;
	struct vs_port *peer;
};

static struct vs_port *all[MAXP];
static DEFINE_MUTEX(all_lock);
static struct platform_device *pdevs[MAXP];

static int vs_qpp(struct vs_port *p)
{
	return p->rss;
}

/* lay out the queues: one pool, or npools pools with p->rss queues each */
static int vs_layout(struct vs_port *p, bool vmdq)
{
	struct net_device *dev = p->dev;
	int n = vmdq ? p->npools * vs_qpp(p) : p->rss, err, i;

	ASSERT_RTNL();
	netdev_reset_tc(dev);		/* also unbinds all subordinate channels */
	err = netif_set_real_num_tx_queues(dev, n);
	if (!err)
		err = netif_set_real_num_rx_queues(dev, n);
	if (err)
		return err;
	p->vmdq_on = vmdq;
	if (vmdq) {
		netdev_set_num_tc(dev, 1);
		netdev_set_tc_queue(dev, 0, vs_qpp(p), 0);
	}
	for (i = 1; i < p->npools; i++) {
		struct net_device *v = p->pool[i].vdev;

		if (!v)
			continue;
		if (vmdq) {
			netdev_set_sb_channel(v, i);
			netdev_bind_sb_channel_queue(dev, v, 0, vs_qpp(p),
						     i * vs_qpp(p));
		}
	}
	return 0;
}

static void *vs_fwd_add(struct net_device *dev, struct net_device *vdev)
{
	struct vs_port *p = netdev_priv(dev);
	int i, err;

	err = -EMEDIUMTYPE;
	if (!macvlan_supports_dest_filter(vdev))
		goto fail;
	err = -ERANGE;
	if (netif_is_multiqueue(vdev))
		goto fail;
	err = -EBUSY;
	if (p->npools < 2)
		goto fail;
	for (i = 1; i < p->npools; i++)
		if (!p->pool[i].vdev)
			break;
	if (i >= p->npools)
		goto fail;
	if (!p->vmdq_on) {
		err = vs_layout(p, true);
		if (err)
			goto fail;
	}
	p->pool[i].pool = i;
	ether_addr_copy(p->pool[i].mac, vdev->dev_addr);
	err = netdev_set_sb_channel(vdev, i);
	if (!err)
		err = netdev_bind_sb_channel_queue(dev, vdev, 0, vs_qpp(p),
						   i * vs_qpp(p));
	if (err) {
		netdev_set_sb_channel(vdev, 0);
		goto fail;
	}
	smp_wmb();
	WRITE_ONCE(p->pool[i].vdev, vdev);
	p->n_add++;
	netdev_dbg(dev, "pool %d: %s\n", i, vdev->name);
	return &p->pool[i];
fail:
	p->n_add_fail++;
	netdev_dbg(dev, "%s not offloaded: %d\n", vdev->name, err);
	return ERR_PTR(err);
}

static void vs_fwd_del(struct net_device *dev, void *priv)
{
	struct vs_port *p = netdev_priv(dev);
	struct vs_pool *pool = priv;
	struct net_device *vdev = pool->vdev;

	WRITE_ONCE(pool->vdev, NULL);
	synchronize_net();
	netdev_unbind_sb_channel(dev, vdev);
	netdev_set_sb_channel(vdev, 0);
	p->n_del++;
}

/* feature switched off with macvlans up: give each back to software, as
 * ixgbe's reassign does when no pool is left
 */
static void vs_release_all(struct vs_port *p)
{
	int i;

	for (i = 1; i < p->npools; i++) {
		struct net_device *v = p->pool[i].vdev;

		if (!v)
			continue;
		netdev_err(v, "no pool left for this macvlan: forwarding in software\n");
		macvlan_release_l2fw_offload(v);
		vs_fwd_del(p->dev, &p->pool[i]);
	}
}

static int vs_set_features(struct net_device *dev, netdev_features_t f)
{
	struct vs_port *p = netdev_priv(dev);
	netdev_features_t changed = dev->features ^ f;

	if (changed & NETIF_F_HW_L2FW_DOFFLOAD) {
		vs_release_all(p);
		vs_layout(p, false);
	}
	dev->features = f;
	return 1;
}

static netdev_features_t vs_fix_features(struct net_device *dev,
					 netdev_features_t f)
{
	struct vs_port *p = netdev_priv(dev);

	if (p->npools < 2)
		f &= ~NETIF_F_HW_L2FW_DOFFLOAD;
	return f;
}

static u16 vs_select_queue(struct net_device *dev, struct sk_buff *skb,
			   struct net_device *sb_dev)
{
	if (sb_dev) {
		u8 tc = netdev_get_prio_tc_map(dev, skb->priority);

		return sb_dev->tc_to_txq[tc].offset +
		       reciprocal_scale(skb_get_hash(skb),
					sb_dev->tc_to_txq[tc].count);
	}
	return netdev_pick_tx(dev, skb, NULL) % vs_qpp(netdev_priv(dev));
}

/* deliver into port q: a unicast frame for an offloaded macvlan goes straight
 * to it (as ixgbe's ring->netdev does), all else to the port
 */
static bool vs_deliver(struct vs_port *q, struct sk_buff *skb, bool only_pool)
{
	const u8 *da = eth_hdr(skb)->h_dest;
	struct net_device *to = q->dev;
	int i, rxq = 0;

	for (i = 1; q->vmdq_on && i < q->npools; i++) {
		struct net_device *v = READ_ONCE(q->pool[i].vdev);

		if (v && ether_addr_equal(q->pool[i].mac, da)) {
			to = v;
			rxq = i * vs_qpp(q);
			break;
		}
	}
	if (only_pool && to == q->dev)
		return false;
	q->rx[rxq].pkts++;
	q->rx[rxq].bytes += skb->len;
	dev_sw_netstats_rx_add(q->dev, skb->len);
	skb_orphan(skb);
	skb->protocol = eth_type_trans(skb, to);
	if (to != q->dev)
		macvlan_count_rx(netdev_priv(to), skb->len + ETH_HLEN, true, false);
	else
		skb_record_rx_queue(skb, rxq);
	__netif_rx(skb);
	return true;
}

static netdev_tx_t vs_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct vs_port *p = netdev_priv(dev), *peer;
	u16 q = skb_get_queue_mapping(skb);

	skb_tx_timestamp(skb);
	if (q < MAXQ) {
		p->tx[q].pkts++;
		p->tx[q].bytes += skb->len;
	}
	dev_sw_netstats_tx_add(dev, 1, skb->len);
	skb_reset_mac_header(skb);
	rcu_read_lock();
	/* the embedded switch: a frame for a local pool does not leave */
	if (is_unicast_ether_addr(eth_hdr(skb)->h_dest) && vs_deliver(p, skb, true))
		goto out;
	peer = rcu_dereference_raw(p->peer);
	if (!peer || !netif_running(peer->dev)) {
		kfree_skb(skb);
		goto out;
	}
	vs_deliver(peer, skb, false);
out:
	rcu_read_unlock();
	return NETDEV_TX_OK;
}

static void vs_carrier(struct vs_port *p)
{
	bool up = p->peer && netif_running(p->dev) && netif_running(p->peer->dev);

	if (up) {
		netif_carrier_on(p->dev);
		netif_carrier_on(p->peer->dev);
	} else {
		netif_carrier_off(p->dev);
		if (p->peer)
			netif_carrier_off(p->peer->dev);
	}
}

static int vs_open(struct net_device *dev)
{
	netif_tx_start_all_queues(dev);
	vs_carrier(netdev_priv(dev));
	return 0;
}

static int vs_stop(struct net_device *dev)
{
	struct vs_port *p = netdev_priv(dev);

	netif_tx_stop_all_queues(dev);
	netif_carrier_off(dev);
	if (p->peer)
		netif_carrier_off(p->peer->dev);
	return 0;
}

static void vs_rx_mode(struct net_device *dev) { }

static const struct net_device_ops vs_ops = {
	.ndo_open = vs_open,
	.ndo_stop = vs_stop,
	.ndo_start_xmit = vs_xmit,
	.ndo_select_queue = vs_select_queue,
	.ndo_set_rx_mode = vs_rx_mode,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
	.ndo_set_features = vs_set_features,
	.ndo_fix_features = vs_fix_features,
	.ndo_dfwd_add_station = vs_fwd_add,
	.ndo_dfwd_del_station = vs_fwd_del,
};

/* ---- ethtool ---- */
static void vs_drvinfo(struct net_device *dev, struct ethtool_drvinfo *i)
{
	strscpy(i->driver, "vmdqsim", sizeof(i->driver));
	strscpy(i->version, "1", sizeof(i->version));
	strscpy(i->bus_info, dev_name(dev->dev.parent), sizeof(i->bus_info));
}

static void vs_get_channels(struct net_device *dev, struct ethtool_channels *c)
{
	struct vs_port *p = netdev_priv(dev);

	c->max_combined = p->rss_max;
	c->combined_count = p->rss;
}

static int vs_set_channels(struct net_device *dev, struct ethtool_channels *c)
{
	struct vs_port *p = netdev_priv(dev);

	if (c->rx_count || c->tx_count || c->other_count ||
	    !c->combined_count || c->combined_count > p->rss_max)
		return -EINVAL;
	p->rss = c->combined_count;
	return vs_layout(p, p->vmdq_on);
}

static int vs_ksettings(struct net_device *dev, struct ethtool_link_ksettings *k)
{
	k->base.speed = SPEED_10000;
	k->base.duplex = DUPLEX_FULL;
	k->base.port = PORT_OTHER;
	return 0;
}

static int vs_sset(struct net_device *dev, int set)
{
	struct vs_port *p = netdev_priv(dev);

	if (set != ETH_SS_STATS)
		return -EOPNOTSUPP;
	return 4 + 2 * p->npools;
}

static void vs_strings(struct net_device *dev, u32 set, u8 *d)
{
	struct vs_port *p = netdev_priv(dev);
	int i;

	if (set != ETH_SS_STATS)
		return;
	ethtool_puts(&d, "pools_used");
	ethtool_puts(&d, "station_add");
	ethtool_puts(&d, "station_add_failed");
	ethtool_puts(&d, "station_del");
	for (i = 0; i < p->npools; i++) {
		ethtool_sprintf(&d, "pool_%d_tx_packets", i);
		ethtool_sprintf(&d, "pool_%d_rx_packets", i);
	}
}

static void vs_stats(struct net_device *dev, struct ethtool_stats *s, u64 *d)
{
	struct vs_port *p = netdev_priv(dev);
	int i, q, used = 0;

	for (i = 1; i < p->npools; i++)
		used += !!p->pool[i].vdev;
	*d++ = used;
	*d++ = p->n_add;
	*d++ = p->n_add_fail;
	*d++ = p->n_del;
	for (i = 0; i < p->npools; i++) {
		u64 t = 0, r = 0;

		for (q = i * vs_qpp(p); q < (i + 1) * vs_qpp(p) && q < MAXQ; q++) {
			t += p->tx[q].pkts;
			r += p->rx[q].pkts;
		}
		*d++ = t;
		*d++ = r;
	}
}

static const struct ethtool_ops vs_eops = {
	.get_drvinfo = vs_drvinfo,
	.get_link = ethtool_op_get_link,
	.get_channels = vs_get_channels,
	.set_channels = vs_set_channels,
	.get_link_ksettings = vs_ksettings,
	.get_sset_count = vs_sset,
	.get_strings = vs_strings,
	.get_ethtool_stats = vs_stats,
};

/* ---- probe ---- */
static int vs_probe(struct device *parent)
{
	struct net_device *dev;
	struct vs_port *p;
	u8 mac[ETH_ALEN] = { 0x02, 0x56, 0x4d, 0x44, 0x51, 0 };
	int id, err;

	mutex_lock(&all_lock);
	for (id = 0; id < MAXP && all[id]; id++)
		;
	err = -ENOSPC;
	if (id == MAXP)
		goto unlock;
	err = -ENOMEM;
	dev = alloc_etherdev_mqs(sizeof(*p), MAXQ, MAXQ);
	if (!dev)
		goto unlock;
	SET_NETDEV_DEV(dev, parent);
	p = netdev_priv(dev);
	p->dev = dev;
	p->id = id;
	p->rss_max = 4;
	p->rss = 2;
	if (VMDQ[id] == -1)
		VMDQ[id] = 4;
	p->npools = VMDQ[id] < 2 ? 1 : min3(VMDQ[id], MAXPOOL, MAXQ / 4);
	if (VMDQ[id] > p->npools)
		dev_warn(parent, "VMDQ=%d not possible, %d pools used\n", VMDQ[id], p->npools);
	p->pool[0].vdev = dev;
	mac[5] = id;
	eth_hw_addr_set(dev, mac);
	dev->netdev_ops = &vs_ops;
	dev->ethtool_ops = &vs_eops;
	dev->pcpu_stat_type = NETDEV_PCPU_STAT_TSTATS;
	dev->priv_flags |= IFF_UNICAST_FLT | IFF_LIVE_ADDR_CHANGE;
	dev->hw_features = NETIF_F_SG | NETIF_F_HW_CSUM | NETIF_F_HIGHDMA;
	dev->features = dev->hw_features;
	dev->vlan_features = dev->hw_features;
	if (p->npools > 1)
		dev->hw_features |= NETIF_F_HW_L2FW_DOFFLOAD;
	dev->max_mtu = 9000;
	netif_set_real_num_tx_queues(dev, p->rss);
	netif_set_real_num_rx_queues(dev, p->rss);
	netif_carrier_off(dev);
	dev_set_drvdata(parent, p);
	err = register_netdev(dev);
	if (err) {
		free_netdev(dev);
		goto unlock;
	}
	rtnl_lock();
	all[id] = p;
	if (all[id ^ 1]) {
		p->peer = all[id ^ 1];
		all[id ^ 1]->peer = p;
	}
	rtnl_unlock();
	dev_info(parent, "%s: %d pools, %d queues each\n", dev->name, p->npools, p->rss);
unlock:
	mutex_unlock(&all_lock);
	return err;
}

static void vs_remove(struct device *parent)
{
	struct vs_port *p = dev_get_drvdata(parent);

	mutex_lock(&all_lock);
	rtnl_lock();
	if (p->peer) {
		netif_carrier_off(p->peer->dev);
		WRITE_ONCE(p->peer->peer, NULL);
		p->peer = NULL;
	}
	all[p->id] = NULL;
	rtnl_unlock();
	synchronize_net();
	unregister_netdev(p->dev);
	free_netdev(p->dev);
	mutex_unlock(&all_lock);
}

static int vs_plat_probe(struct platform_device *pd) { return vs_probe(&pd->dev); }
static void vs_plat_remove(struct platform_device *pd) { vs_remove(&pd->dev); }
static struct platform_driver vs_plat = {
	.probe = vs_plat_probe,
	.remove_new = vs_plat_remove,
	.driver = { .name = "vmdqsim" },
};

static int vs_pci_probe(struct pci_dev *pd, const struct pci_device_id *id)
{
	int err = pci_enable_device(pd);

	if (!err) {
		err = vs_probe(&pd->dev);
		if (err)
			pci_disable_device(pd);
	}
	return err;
}

static void vs_pci_remove(struct pci_dev *pd)
{
	vs_remove(&pd->dev);
	pci_disable_device(pd);
}

static const struct pci_device_id vs_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
static struct pci_driver vs_pci = {
	.name = "vmdqsim",
	.id_table = vs_ids,
	.probe = vs_pci_probe,
	.remove = vs_pci_remove,
};

static int __init vs_init(void)
{
	int i, err;

	err = platform_driver_register(&vs_plat);
	if (err)
		return err;
	err = pci_register_driver(&vs_pci);
	if (err) {
		platform_driver_unregister(&vs_plat);
		return err;
	}
	for (i = 0; i < ports && i < MAXP; i++)
		pdevs[i] = platform_device_register_simple("vmdqsim", i, NULL, 0);
	return 0;
}

static void __exit vs_exit(void)
{
	int i;

	for (i = 0; i < MAXP; i++)
		if (!IS_ERR_OR_NULL(pdevs[i]))
			platform_device_unregister(pdevs[i]);
	pci_unregister_driver(&vs_pci);
	platform_driver_unregister(&vs_plat);
}
module_init(vs_init);
module_exit(vs_exit);
MODULE_DEVICE_TABLE(pci, vs_ids);
MODULE_DESCRIPTION("software port with macvlan L2 forwarding offload");
MODULE_LICENSE("GPL");
