/* Test helper: a filter as libseccomp makes it. stdin: "arch NAME", "rule ACTION NAME COUNT [INDEX OP VALUE VALUE2]...";
 * argv[1]: the default action; stdout: the BPF program. Names it does not know are left out, as in a runtime. */
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	char word[128], name[128];
	scmp_filter_ctx ctx = seccomp_init(strtoul(argv[1], NULL, 0));
	if (argc != 2 || !ctx)
		return 1;
	while (scanf("%127s", word) == 1) {
		unsigned action, count, index, op;
		unsigned long long a, b;
		struct scmp_arg_cmp args[6];
		if (!strcmp(word, "arch")) {
			if (scanf("%127s", name) != 1)
				return 1;
			seccomp_arch_add(ctx, seccomp_arch_resolve_name(name));
			continue;
		}
		if (scanf("%u %127s %u", &action, name, &count) != 3 || count > 6)
			return 1;
		for (unsigned i = 0; i < count; i++) {
			if (scanf("%u %u %llu %llu", &index, &op, &a, &b) != 4)
				return 1;
			args[i] = (struct scmp_arg_cmp){ index, op, a, b };
		}
		int nr = seccomp_syscall_resolve_name(name);
		if (nr == __NR_SCMP_ERROR)
			continue;
		int failed = seccomp_rule_add_array(ctx, action, nr, count, args);
		if (failed)
			fprintf(stderr, "%s: %s\n", name, strerror(-failed));
	}
	return seccomp_export_bpf(ctx, 1) ? 1 : 0;
}
