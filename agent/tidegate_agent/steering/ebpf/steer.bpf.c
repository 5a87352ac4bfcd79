// SPDX-License-Identifier: Apache-2.0
//
// What the kernel runs at connect(2) and getpeername(2) while an eBPF agent steers (bpf(2), program type
// CGROUP_SOCK_ADDR). A connection to a steered endpoint goes to the agent's port on loopback; its socket's
// cookie remembers where it was going. Everything else goes on as it was: no program here ever refuses a call.
//
// These run for every process below the cgroup, in whatever network namespace. Hence the first thing that each
// does is to see whether the socket is in the agent's own: 127.0.0.1 is another host's everywhere else.
//
// Only the stable parts of the interface are used, so that one build fits every kernel from 5.14 on.
// script/build-bpf makes steer.bpf.o of this; the numbers of `maps` are read from there.

#include <linux/bpf.h>
#include <linux/in.h>

#define SECTION(name) __attribute__((section(name), used))
#define BIG_ENDIAN_16(number) ((__u16)__builtin_bswap16(number))
#define BIG_ENDIAN_32(number) ((__u32)__builtin_bswap32(number))

#define LOOPBACK4 BIG_ENDIAN_32(0x7f000001)
#define LOOPBACK6_LAST BIG_ENDIAN_32(1)
#define MAPPED BIG_ENDIAN_32(0xffff)

#define PROCEED 1
#define EVEN_WITHOUT_LEASE (~0ULL)

enum exemption { EXEMPT_BY_MARK = 1, EXEMPT_BY_UID = 2 };

// Addresses and ports are in network byte order, all else in the machine's.

struct settings {
	__u64 netns_cookie; // the network namespace whose connections are steered
	__u32 exempt_by;
	__u32 value; // a mark under the mask, or a uid
	__u32 mask;
	__u32 unused;
};

// What is made on the stack is made of whole slots: for a process without CAP_PERFMON the verifier of Linux 6.1 takes a
// second store into a slot for an attempt to forge a pointer.

struct endpoint4 {
	__u64 address_and_port; // the address first, then two bytes of port and two of nothing
};

struct endpoint6 {
	__u64 address[2];
	__u64 port;
};

struct redirect {
	__u64 until_ns; // by bpf_ktime_get_ns, CLOCK_MONOTONIC; EVEN_WITHOUT_LEASE for the agent's probe
	__u16 to_port;
	__u16 unused[3];
};

struct original {
	__u64 address[2]; // IPv4 as ::ffff:a.b.c.d
	__u64 ports; // its port, and the one where the connection went instead, in 16 bits each
};

struct map_definition {
	__u32 type, key_size, value_size, max_entries, flags;
};

#define MAX_ENDPOINTS 65536
#define MAX_ORIGINALS 16384

struct map_definition settings SECTION("maps") = {
	BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(struct settings), 1, 0,
};

// The time until which the agent promised to be alive.
struct map_definition lease SECTION("maps") = {
	BPF_MAP_TYPE_ARRAY, sizeof(__u32), sizeof(__u64), 1, 0,
};

struct map_definition steered4 SECTION("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct endpoint4), sizeof(struct redirect), MAX_ENDPOINTS, BPF_F_NO_PREALLOC,
};

struct map_definition steered6 SECTION("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct endpoint6), sizeof(struct redirect), MAX_ENDPOINTS, BPF_F_NO_PREALLOC,
};

// By socket cookie, which no other socket ever has. The agent reads it at accept; what was not used for longest goes.
struct map_definition originals SECTION("maps") = {
	BPF_MAP_TYPE_LRU_HASH, sizeof(__u64), sizeof(struct original), MAX_ORIGINALS, 0,
};

static void *(*map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static __u64 (*now_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static __u64 (*netns_cookie)(void *context) = (void *)BPF_FUNC_get_netns_cookie;
static __u64 (*socket_cookie)(void *context) = (void *)BPF_FUNC_get_socket_cookie;
static __u64 (*uid_and_gid)(void) = (void *)BPF_FUNC_get_current_uid_gid;

#define INLINE static inline __attribute__((always_inline))

// As in memory: the machine is little-endian, as is this code.
INLINE __u64 joined(__u32 first, __u32 second)
{
	return (__u64)second << 32 | first;
}

INLINE __u64 joined_ports(__u16 port, __u16 to_port)
{
	return joined(port | (__u32)to_port << 16, 0);
}

INLINE __u32 first_of(__u64 half)
{
	return (__u32)half;
}

INLINE __u32 second_of(__u64 half)
{
	return (__u32)(half >> 32);
}

INLINE __u16 port(const struct original *original)
{
	return (__u16)original->ports;
}

INLINE __u16 to_port(const struct original *original)
{
	return (__u16)(original->ports >> 16);
}

// The settings when the socket is in the agent's network namespace, nothing otherwise.
INLINE const struct settings *settings_here(struct bpf_sock_addr *context)
{
	__u32 first = 0;
	const struct settings *found = map_lookup(&settings, &first);

	return found && found->netns_cookie == netns_cookie(context) ? found : 0;
}

INLINE int is_exempt(struct bpf_sock_addr *context, const struct settings *known)
{
	if (known->exempt_by == EXEMPT_BY_UID)
		return (__u32)uid_and_gid() == known->value;
	return (context->sk->mark & known->mask) == known->value;
}

INLINE int applies(struct bpf_sock_addr *context, const struct settings *known, const struct redirect *redirect)
{
	__u32 first = 0;
	const __u64 *lease_until_ns;
	__u64 now;

	if (redirect->until_ns == EVEN_WITHOUT_LEASE)
		return 1;
	lease_until_ns = map_lookup(&lease, &first);
	now = now_ns();
	if (!lease_until_ns || now >= *lease_until_ns || now >= redirect->until_ns)
		return 0;
	if (context->sk->bound_dev_if) // it could not reach loopback
		return 0;
	return !is_exempt(context, known);
}

// What cannot be remembered must not be redirected: the agent could not tell where it was going.
INLINE int remembered(struct bpf_sock_addr *context, const struct original *original)
{
	__u64 cookie = socket_cookie(context);

	return map_update(&originals, &cookie, original, BPF_ANY) == 0;
}

INLINE const struct original *recalled(struct bpf_sock_addr *context)
{
	__u64 cookie = socket_cookie(context);

	return map_lookup(&originals, &cookie);
}

// The redirect for an IPv4 destination, once it is remembered.
INLINE const struct redirect *redirect4(struct bpf_sock_addr *context, __u32 address, __u16 port)
{
	const struct settings *known = settings_here(context);
	struct endpoint4 endpoint = {.address_and_port = joined(address, port)};
	const struct redirect *redirect;
	struct original original;

	if (!known || context->protocol != IPPROTO_TCP)
		return 0;
	redirect = map_lookup(&steered4, &endpoint);
	if (!redirect || !applies(context, known, redirect))
		return 0;
	original = (struct original){
		.address = {0, joined(MAPPED, address)}, .ports = joined_ports(port, redirect->to_port)};
	return remembered(context, &original) ? redirect : 0;
}

SECTION("cgroup/connect4") int connect4(struct bpf_sock_addr *context)
{
	const struct redirect *redirect = redirect4(context, context->user_ip4, context->user_port);

	if (redirect) {
		context->user_ip4 = LOOPBACK4;
		context->user_port = redirect->to_port;
	}
	return PROCEED;
}

INLINE int is_mapped(struct bpf_sock_addr *context)
{
	return !context->user_ip6[0] && !context->user_ip6[1] && context->user_ip6[2] == MAPPED;
}

SECTION("cgroup/connect6") int connect6(struct bpf_sock_addr *context)
{
	const struct settings *known;
	const struct redirect *redirect;
	struct endpoint6 endpoint;
	struct original original;

	if (is_mapped(context)) {
		redirect = redirect4(context, context->user_ip6[3], context->user_port);
		if (redirect) {
			context->user_ip6[3] = LOOPBACK4;
			context->user_port = redirect->to_port;
		}
		return PROCEED;
	}
	known = settings_here(context);
	if (!known || context->protocol != IPPROTO_TCP)
		return PROCEED;
	original.address[0] = endpoint.address[0] = joined(context->user_ip6[0], context->user_ip6[1]);
	original.address[1] = endpoint.address[1] = joined(context->user_ip6[2], context->user_ip6[3]);
	endpoint.port = context->user_port;
	redirect = map_lookup(&steered6, &endpoint);
	if (!redirect || !applies(context, known, redirect))
		return PROCEED;
	original.ports = joined_ports(context->user_port, redirect->to_port);
	if (!remembered(context, &original))
		return PROCEED;
	context->user_ip6[0] = 0;
	context->user_ip6[1] = 0;
	context->user_ip6[2] = 0;
	context->user_ip6[3] = LOOPBACK6_LAST;
	context->user_port = redirect->to_port;
	return PROCEED;
}

// A client that asks for its peer is told whom it called, as with NAT.

SECTION("cgroup/getpeername4") int getpeername4(struct bpf_sock_addr *context)
{
	const struct original *original;

	if (!settings_here(context) || context->user_ip4 != LOOPBACK4)
		return PROCEED;
	original = recalled(context);
	if (original && to_port(original) == (__u16)context->user_port) {
		context->user_ip4 = second_of(original->address[1]);
		context->user_port = port(original);
	}
	return PROCEED;
}

SECTION("cgroup/getpeername6") int getpeername6(struct bpf_sock_addr *context)
{
	const struct original *original;

	if (!settings_here(context))
		return PROCEED;
	if (!(is_mapped(context) && context->user_ip6[3] == LOOPBACK4) &&
	    !(!context->user_ip6[0] && !context->user_ip6[1] && !context->user_ip6[2] &&
	      context->user_ip6[3] == LOOPBACK6_LAST))
		return PROCEED;
	original = recalled(context);
	if (original && to_port(original) == (__u16)context->user_port) {
		context->user_ip6[0] = first_of(original->address[0]);
		context->user_ip6[1] = second_of(original->address[0]);
		context->user_ip6[2] = first_of(original->address[1]);
		context->user_ip6[3] = second_of(original->address[1]);
		context->user_port = port(original);
	}
	return PROCEED;
}

char terms[] SECTION("license") = "Apache-2.0";
