// SPDX-License-Identifier: GPL-2.0-only
/*
 * The control filesystem. Its shape is the table's; what stands for a wildcard is
 * made and removed by the daemon; what is in a file is asked when it is opened.
 */

#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pid.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "tcmi.h"

struct ctl_entry {
	/* NULL: a wildcard. */
	const char *name;
	umode_t mode;
	u16 parent;
	u16 flags;
};

/* The first word of a command is a process of this machine. */
#define CTL_PID 1
/* What is read is the answer to what was written. */
#define CTL_ANSWERS 2

#include "ctlfs_table.h"

#define CTL_MAGIC 0x74636d69
#define CTL_ROOT 0

/* A directory or link that the daemon made. */
struct made {
	struct list_head list;
	u32 entry;
	u64 key;
	struct dentry *dentry;
};

/* Guards what follows; the tree changes under it. */
static DEFINE_MUTEX(tree_lock);
static LIST_HEAD(all_made);
static struct vfsmount *tree_mount;
static int tree_pins;
static bool is_served;

/* An open file. */
struct handle {
	/* For text and position. */
	struct mutex lock;
	char *text;
	size_t length;
	/* Of files that answer: their position. */
	loff_t told;
	bool used;
};

static u64 ino_of(u32 entry, u64 key)
{
	return key << 8 | entry;
}

static u32 entry_of(const struct inode *inode)
{
	return inode->i_ino & 0xff;
}

static u64 key_of(const struct inode *inode)
{
	return inode->i_ino >> 8;
}

static_assert(ARRAY_SIZE(ctl_table) <= 0xff);
static_assert(sizeof(((struct inode *)0)->i_ino) == sizeof(u64));

static const struct ctl_entry *table_entry(const struct inode *inode)
{
	return &ctl_table[entry_of(inode)];
}

static int ask(const struct inode *inode, struct tcmi_question *question, char **text,
	       size_t *length)
{
	question->entry = entry_of(inode);
	question->key = key_of(inode);
	return tcmi_ask(question, text, length);
}

/* Modes and owners are the table's and the daemon's. O_TRUNC of a command is none. */
static int ctl_setattr(struct tcmi_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	if (attr->ia_valid & (ATTR_MODE | ATTR_UID | ATTR_GID) || !(attr->ia_valid & ATTR_SIZE))
		return -EPERM;
	return attr->ia_size ? -EINVAL : 0;
}

static int read_value(struct inode *inode, struct file *file, struct handle *handle)
{
	struct tcmi_question question = { .op = TCMI_CTL_READ, .cred = file->f_cred };

	return ask(inode, &question, &handle->text, &handle->length);
}

static int ctl_open(struct inode *inode, struct file *file)
{
	const struct ctl_entry *entry = table_entry(inode);
	struct handle *handle;
	int err = 0;

	/* The modes hold for root too. */
	if ((file->f_mode & FMODE_READ && !(entry->mode & 0444)) ||
	    (file->f_mode & FMODE_WRITE && !(entry->mode & 0222)))
		return -EACCES;
	handle = kzalloc(sizeof(*handle), GFP_KERNEL_ACCOUNT);
	if (!handle)
		return -ENOMEM;
	mutex_init(&handle->lock);
	if (file->f_mode & FMODE_READ)
		err = read_value(inode, file, handle);
	if (err) {
		kfree(handle);
		return err;
	}
	file->private_data = handle;
	return entry->flags & CTL_ANSWERS ? stream_open(inode, file) : 0;
}

static int ctl_release(struct inode *inode, struct file *file)
{
	struct handle *handle = file->private_data;

	kvfree(handle->text);
	kfree(handle);
	return 0;
}

static ssize_t ctl_read(struct file *file, char __user *buffer, size_t length, loff_t *at)
{
	struct handle *handle = file->private_data;
	ssize_t ret;

	mutex_lock(&handle->lock);
	ret = simple_read_from_buffer(buffer, length, at ?: &handle->told, handle->text,
				      handle->length);
	mutex_unlock(&handle->lock);
	return ret;
}

/* The process that the first word is, where the writer stands. */
static void find_target(char *command, struct tcmi_question *question)
{
	size_t digits = strspn(command, "0123456789");
	char end = command[digits];

	command[digits] = '\0';
	if (kstrtoint(command, 10, &question->target_nr))
		question->target_nr = 0;
	command[digits] = end;
	rcu_read_lock();
	question->target = get_pid(find_vpid(question->target_nr));
	rcu_read_unlock();
}

static void keep_answer(struct handle *handle, char *text, size_t length)
{
	mutex_lock(&handle->lock);
	swap(handle->text, text);
	handle->length = length;
	handle->told = 0;
	mutex_unlock(&handle->lock);
	kvfree(text);
}

static int run_command(struct file *file, char *command, size_t length)
{
	const struct ctl_entry *entry = table_entry(file_inode(file));
	struct tcmi_question question = {
		.op = TCMI_CTL_WRITE,
		.flags = file->f_flags & O_NONBLOCK ? TCMI_CTL_NONBLOCK : 0,
		.cred = file->f_cred,
		.data = command,
		.data_length = length,
	};
	char *text = NULL;
	size_t text_length = 0;
	int err;

	if (entry->flags & CTL_PID)
		find_target(command, &question);
	err = ask(file_inode(file), &question, &text, &text_length);
	put_pid(question.target);
	if (entry->flags & CTL_ANSWERS)
		keep_answer(file->private_data, text, text_length);
	else
		kvfree(text);
	return err;
}

/* One write is one command, whole, at the start of the file. */
static bool is_first_part(struct file *file, loff_t at)
{
	struct handle *handle = file->private_data;
	bool is_first;

	mutex_lock(&handle->lock);
	is_first = !handle->used;
	handle->used = true;
	mutex_unlock(&handle->lock);
	return file->f_flags & O_APPEND ? is_first : !at;
}

static ssize_t ctl_write(struct file *file, const char __user *buffer, size_t length, loff_t *at)
{
	char *command;
	int err;

	if (!is_first_part(file, at ? *at : 0))
		return -EINVAL;
	if (!length || length > TCMI_CTL_COMMAND_BYTES_MAX)
		return -EINVAL;
	command = memdup_user_nul(buffer, length);
	if (IS_ERR(command))
		return PTR_ERR(command);
	err = run_command(file, command, length);
	kfree(command);
	if (err)
		return err;
	if (at)
		*at += length;
	return length;
}

static const struct file_operations ctl_file_operations = {
	.owner = THIS_MODULE,
	.open = ctl_open,
	.release = ctl_release,
	.read = ctl_read,
	.write = ctl_write,
	.llseek = default_llseek,
};

static void free_text(void *text)
{
	kvfree(text);
}

static const char *ctl_get_link(struct dentry *dentry, struct inode *inode,
				struct delayed_call *done)
{
	struct tcmi_question question = { .op = TCMI_CTL_READLINK, .cred = current_cred() };
	size_t length;
	char *text;
	int err;

	/* A walk without references cannot wait; it is done again with them. */
	if (!dentry)
		return ERR_PTR(-ECHILD);
	err = ask(inode, &question, &text, &length);
	if (err)
		return ERR_PTR(err);
	if (!length || length >= PATH_MAX || strlen(text) != length) {
		kvfree(text);
		return ERR_PTR(-EIO);
	}
	set_delayed_call(done, free_text, text);
	return text;
}

static const struct inode_operations ctl_file_inode_operations = {
	.setattr = ctl_setattr,
};

static const struct inode_operations ctl_link_inode_operations = {
	.get_link = ctl_get_link,
	.setattr = ctl_setattr,
};

static const struct inode_operations ctl_dir_inode_operations = {
	.lookup = simple_lookup,
	.setattr = ctl_setattr,
};

struct owner {
	kuid_t uid;
	kgid_t gid;
};

static const struct owner root_owner = { GLOBAL_ROOT_UID, GLOBAL_ROOT_GID };

static struct inode *make_inode(struct super_block *sb, u32 entry, u64 key, struct owner owner)
{
	struct inode *inode = new_inode(sb);

	if (!inode)
		return NULL;
	inode->i_ino = ino_of(entry, key);
	inode->i_mode = ctl_table[entry].mode;
	inode->i_uid = owner.uid;
	inode->i_gid = owner.gid;
	tcmi_set_times(inode);
	switch (inode->i_mode & S_IFMT) {
	case S_IFDIR:
		inode->i_op = &ctl_dir_inode_operations;
		inode->i_fop = &simple_dir_operations;
		set_nlink(inode, 2);
		break;
	case S_IFLNK:
		inode->i_op = &ctl_link_inode_operations;
		break;
	default:
		inode->i_op = &ctl_file_inode_operations;
		inode->i_fop = &ctl_file_operations;
		break;
	}
	return inode;
}

/* A dentry for @name that is not there; somebody may be looking at one that was. */
static struct dentry *new_dentry(struct dentry *parent, const char *name)
{
	struct qstr qstr = QSTR_INIT(name, strlen(name));
	struct dentry *dentry = d_hash_and_lookup(parent, &qstr);

	if (IS_ERR(dentry))
		return dentry;
	if (dentry) {
		if (d_really_is_positive(dentry)) {
			dput(dentry);
			return ERR_PTR(-EEXIST);
		}
		d_drop(dentry);
		dput(dentry);
	}
	dentry = d_alloc(parent, &qstr);
	return dentry ?: ERR_PTR(-ENOMEM);
}

/* Keeps the reference to the dentry: that is what holds it in the tree. */
static struct dentry *make_place(struct dentry *parent, const char *name, u32 entry, u64 key,
				 struct owner owner)
{
	struct inode *dir = d_inode(parent);
	struct dentry *dentry;
	struct inode *inode;

	inode_lock(dir);
	dentry = new_dentry(parent, name);
	if (IS_ERR(dentry))
		goto out;
	inode = make_inode(parent->d_sb, entry, key, owner);
	if (!inode) {
		dput(dentry);
		dentry = ERR_PTR(-ENOMEM);
		goto out;
	}
	if (S_ISDIR(inode->i_mode))
		inc_nlink(dir);
	d_add(dentry, inode);
out:
	inode_unlock(dir);
	return dentry;
}

/* What the table has below @parent, except for wildcards; parents come before children. */
static int make_content(struct dentry *parent, u32 entry, u64 key, struct owner owner)
{
	struct dentry *child;
	int err = 0;
	u32 i;

	for (i = entry + 1; !err && i < ARRAY_SIZE(ctl_table); i++) {
		if (ctl_table[i].parent != entry || !ctl_table[i].name)
			continue;
		child = make_place(parent, ctl_table[i].name, i, key, owner);
		if (IS_ERR(child))
			return PTR_ERR(child);
		if (S_ISDIR(ctl_table[i].mode))
			err = make_content(child, i, key, owner);
	}
	return err;
}

/* The directory that @entry's wildcard is in, which the table always has. */
static struct dentry *find_parent(u32 entry)
{
	struct dentry *dir, *child;
	const struct ctl_entry *parent = &ctl_table[ctl_table[entry].parent];
	struct qstr name;

	if (parent == &ctl_table[CTL_ROOT])
		return dget(tree_mount->mnt_root);
	dir = find_parent(parent - ctl_table);
	if (IS_ERR(dir))
		return dir;
	name = (struct qstr)QSTR_INIT(parent->name, strlen(parent->name));
	child = d_hash_and_lookup(dir, &name);
	dput(dir);
	return child ?: ERR_PTR(-ENOENT);
}

static struct made *find_made(u32 entry, u64 key)
{
	struct made *made;

	list_for_each_entry(made, &all_made, list) {
		if (made->entry == entry && made->key == key)
			return made;
	}
	return NULL;
}

static void unmake(struct made *made)
{
	list_del(&made->list);
	simple_recursive_removal(made->dentry, NULL);
	dput(made->dentry);
	kfree(made);
}

static int make(const struct tcmi_ctl_add_args *args, struct owner owner)
{
	struct dentry *parent;
	struct made *made;
	int err = 0;

	made = kzalloc(sizeof(*made), GFP_KERNEL);
	if (!made)
		return -ENOMEM;
	made->entry = args->entry;
	made->key = args->key;
	parent = find_parent(args->entry);
	if (IS_ERR(parent)) {
		kfree(made);
		return PTR_ERR(parent);
	}
	made->dentry = make_place(parent, args->name, args->entry, args->key, owner);
	dput(parent);
	if (IS_ERR(made->dentry)) {
		err = PTR_ERR(made->dentry);
		kfree(made);
		return err;
	}
	/* Ours, beyond the tree's own. */
	dget(made->dentry);
	list_add(&made->list, &all_made);
	if (S_ISDIR(ctl_table[args->entry].mode))
		err = make_content(made->dentry, args->entry, args->key, owner);
	if (err)
		unmake(made);
	return err;
}

static bool is_name(const char name[TCMI_CTL_NAME_BYTES])
{
	size_t length = strnlen(name, TCMI_CTL_NAME_BYTES);

	return length && length < TCMI_CTL_NAME_BYTES && !strchr(name, '/') &&
	       strcmp(name, ".") && strcmp(name, "..") &&
	       !memchr_inv(name + length, 0, TCMI_CTL_NAME_BYTES - length);
}

static bool is_wildcard(u32 entry, u64 key)
{
	return entry < ARRAY_SIZE(ctl_table) && !ctl_table[entry].name && key &&
	       key <= TCMI_CTL_KEY_MAX;
}

int tcmi_ctl_add(const struct tcmi_ctl_add_args *args)
{
	struct owner owner = { make_kuid(&init_user_ns, args->uid),
			       make_kgid(&init_user_ns, args->gid) };
	int err;

	if (args->reserved || !is_wildcard(args->entry, args->key) || !is_name(args->name) ||
	    !uid_valid(owner.uid) || !gid_valid(owner.gid))
		return -EINVAL;
	mutex_lock(&tree_lock);
	err = find_made(args->entry, args->key) ? -EEXIST : make(args, owner);
	mutex_unlock(&tree_lock);
	return err;
}

int tcmi_ctl_remove(const struct tcmi_ctl_remove_args *args)
{
	struct made *made;

	if (args->reserved)
		return -EINVAL;
	mutex_lock(&tree_lock);
	made = find_made(args->entry, args->key);
	if (made)
		unmake(made);
	mutex_unlock(&tree_lock);
	return made ? 0 : -ENOENT;
}

static const struct super_operations ctl_super_operations = {
	.statfs = simple_statfs,
	.drop_inode = generic_delete_inode,
};

static int ctl_fill_super(struct super_block *sb, struct fs_context *fc)
{
	struct inode *root;

	sb->s_magic = CTL_MAGIC;
	sb->s_op = &ctl_super_operations;
	sb->s_blocksize = PAGE_SIZE;
	sb->s_blocksize_bits = PAGE_SHIFT;
	sb->s_time_gran = 1;
	root = make_inode(sb, CTL_ROOT, 0, root_owner);
	sb->s_root = d_make_root(root);
	if (!sb->s_root)
		return -ENOMEM;
	return make_content(sb->s_root, CTL_ROOT, 0, root_owner);
}

static int ctl_get_tree(struct fs_context *fc)
{
	return get_tree_single(fc, ctl_fill_super);
}

static const struct fs_context_operations ctl_context_operations = {
	.get_tree = ctl_get_tree,
};

static int ctl_init_context(struct fs_context *fc)
{
	fc->ops = &ctl_context_operations;
	return 0;
}

static struct file_system_type ctl_fs_type = {
	.owner = THIS_MODULE,
	.name = "tcmictlfs",
	.init_fs_context = ctl_init_context,
	.kill_sb = tcmi_kill_super,
};
MODULE_ALIAS_FS("tcmictlfs");

/* For one session at a time. The tree is there while it lasts, mounted or not. */
int tcmi_ctl_pin(void)
{
	int err = -EBUSY;

	mutex_lock(&tree_lock);
	if (!is_served)
		err = simple_pin_fs(&ctl_fs_type, &tree_mount, &tree_pins);
	if (!err)
		is_served = true;
	mutex_unlock(&tree_lock);
	return err;
}

void tcmi_ctl_unpin(void)
{
	struct made *made, *next;

	mutex_lock(&tree_lock);
	list_for_each_entry_safe(made, next, &all_made, list)
		unmake(made);
	simple_release_fs(&tree_mount, &tree_pins);
	is_served = false;
	mutex_unlock(&tree_lock);
}

void tcmi_ctl_version(struct tcmi_version *version)
{
	version->ctl_entries = ARRAY_SIZE(ctl_table);
	version->ctl_hash = CTL_TABLE_HASH;
}

int tcmi_ctlfs_init(void)
{
	return register_filesystem(&ctl_fs_type);
}

void tcmi_ctlfs_exit(void)
{
	unregister_filesystem(&ctl_fs_type);
}
